"""Training sentences: the challenge's file is checked and used, and the terminology stands in where it is silent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from scripts.data.datasets import all_case_sentences, image_label_cases, sentence_table
from scripts.data.prompt_sentences import PromptSentences, modality_of
from scripts.text import EmbeddingBank, PromptParser, Terminology
from scripts.transforms.labels import SampleQueries, SampleQueriesd

CONTENT = {
    "CT_Abdomen1K": {
        "1": ["Liver in abdominal CT", "CT imaging of the  liver", "liver in abdominal CT"],
        "3": ["Spleen in abdominal CT"],
        "instance_label": 0,
    },
    "MR_Spider_Vertebrae": {"1": ["Vertebrae in spine MR"], "instance_label": 1},
    "autoPET": {"1": ["Lesions avid for FDG"], "instance_label": 1},
}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> PromptSentences:
    return PromptSentences.load(write(tmp_path / "prompts.json", CONTENT))


def test_sentences_of_the_file_by_dataset_and_label(prompts: PromptSentences) -> None:
    assert prompts.sentences("CT_Abdomen1K", 1) == ["liver in abdominal ct", "ct imaging of the liver"]
    assert prompts.sentences("CT_Abdomen1K", 3, "Spleen") == ["spleen", "spleen in abdominal ct"]
    assert [prompts.datasets[name].instances for name in CONTENT] == [False, True, True]
    assert len(prompts.all_sentences()) == 5


def test_where_the_file_is_silent_the_terminology_speaks(prompts: PromptSentences) -> None:
    terminology = Terminology.load()
    pancreas = terminology.sentences(terminology.target("Pancreas", "CT"))
    assert len(pancreas) > 1
    assert prompts.sentences("CT_Abdomen1K", 4, "Pancreas") == pancreas
    assert prompts.sentences("CT_Other", 1, "pancreas") == pancreas
    assert prompts.sentences(None, 1, "pancreas", modality="CT") == pancreas
    assert PromptSentences.load(None).sentences("CT_Abdomen1K", 1, "Pancreas") == pancreas
    with pytest.raises(ValueError, match="no sentence for label 9 of dataset 'CT_Abdomen1K'"):
        prompts.sentences("CT_Abdomen1K", 9)
    with pytest.raises(ValueError, match="no target named 'Pancreatic'"):
        prompts.sentences("CT_Abdomen1K", 9, "Pancreatic")


@pytest.mark.parametrize(
    ("dataset", "modality"),
    [
        ("CT_AMOS", "CT"),
        ("MR_BraTS-T1c", "MRI"),
        ("US_Low-limb-Leg", "US"),
        ("Microscopy_cremi", "Microscopy"),
        ("autoPET", "PET"),
        ("PET_autoPET", "PET"),
        ("CTX_1", None),
        ("", None),
    ],
)
def test_modality_by_the_datasets_name(dataset: str, modality: str | None) -> None:
    assert modality_of(dataset) == modality
    prompts = PromptSentences({})
    assert prompts.modality(dataset, default="US") == (modality or "US")
    if modality is None:
        with pytest.raises(ValueError, match="tells no modality"):
            prompts.modality(dataset)


def test_modality_and_kind_choose_among_targets_of_one_name(prompts: PromptSentences) -> None:
    terminology = Terminology.load()
    target = terminology.target("Vertebrae", "MRI", "lesion")
    assert target != terminology.target("Vertebrae", "MRI")
    words = prompts.sentences("MR_Spider_Vertebrae", 2, "Vertebrae")
    assert words == terminology.sentences(target)


def test_drawn_by_the_generator_alone(prompts: PromptSentences) -> None:
    def draws(seed: int) -> list[str]:
        generator = np.random.default_rng(seed)
        return [prompts.draw("CT_Abdomen1K", 1, generator, "Liver") for _ in range(60)]

    assert draws(1) == draws(1) != draws(2)
    assert set(draws(1)) == {"liver", "liver in abdominal ct", "ct imaging of the liver"}


BAD_CONTENT: dict[str, tuple[Any, str]] = {
    "a list": ([], "object dataset -> label -> sentences, got list"),
    "nothing": ({}, "got dict of length 0"),
    "number": (3, "got int"),
    "unknown modality": ({"Xray_1": {"1": ["a"], "instance_label": 0}}, "'Xray_1' tells no modality"),
    "no labels": ({"CT_A": {"instance_label": 0}}, "'CT_A' names no label"),
    "no flag": ({"CT_A": {"1": ["a"]}}, "'instance_label' has to be 0 or 1, got None"),
    "bad flag": ({"CT_A": {"1": ["a"], "instance_label": 2}}, "0 or 1, got 2"),
    "truth for a flag": ({"CT_A": {"1": ["a"], "instance_label": True}}, "0 or 1, got True"),
    "background": ({"CT_A": {"0": ["a"], "instance_label": 0}}, "whole numbers from 1 on, got '0'"),
    "name for a label": ({"CT_A": {"liver": ["a"], "instance_label": 0}}, "got 'liver'"),
    "one sentence bare": ({"CT_A": {"1": "a", "instance_label": 0}}, "label 1: wanted a list .* got 'a'"),
    "no sentence": ({"CT_A": {"1": [], "instance_label": 0}}, "at least one sentence"),
    "blank sentence": ({"CT_A": {"1": ["a", " "], "instance_label": 0}}, "at least one sentence"),
    "no text": ({"CT_A": {"1": [1], "instance_label": 0}}, "at least one sentence"),
    "dataset a list": ({"CT_A": ["a"]}, "'CT_A' has to hold an object"),
}


@pytest.mark.parametrize("case", BAD_CONTENT)
def test_a_bad_file_says_where_and_what(case: str, tmp_path: Path) -> None:
    content, message = BAD_CONTENT[case]
    with pytest.raises(ValueError, match=f"^prompt sentences: .*{message}"):
        PromptSentences.load(write(tmp_path / "prompts.json", content))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*absent.json \(No such file"):
        PromptSentences.load(tmp_path / "absent.json")
    for content in (b"{", b"\xff\xfe\x00"):
        (tmp_path / "broken.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"broken.json is not JSON"):
            PromptSentences.load(tmp_path / "broken.json")


def test_a_case_list_takes_sentences_and_modality_by_dataset(prompts: PromptSentences, tmp_path: Path) -> None:
    case = {"image": "i.nii", "label": "l.nii"}
    content = {
        "labels": {"Liver": 1, "Pancreas": 2},
        "dataset": "CT_Abdomen1K",
        "training": [case, case | {"dataset": "MR_AMOS"}],
    }
    first, second = image_label_cases(write(tmp_path / "cases.json", content), "PET", prompts=prompts)
    assert (first["modality"], second["modality"]) == ("CT", "MRI")
    assert first["sentences"][1] == ["liver", "liver in abdominal ct", "ct imaging of the liver"]
    assert first["sentences"][2][0] == "pancreas"
    assert "liver in abdominal ct" not in second["sentences"][1]
    found = all_case_sentences([first, first, second])
    assert len(found) == len(set(found))
    assert {"liver", "ct imaging of the liver", "pancreas"} <= set(found)


def test_a_case_list_needs_no_labels_where_the_file_names_them(prompts: PromptSentences, tmp_path: Path) -> None:
    path = write(tmp_path / "cases.json", {"training": [{"image": "i.nii", "label": "l.nii"}]})
    (case,) = image_label_cases(path, "CT", prompts=prompts, dataset="CT_Abdomen1K")
    assert list(case["sentences"]) == [1, 3]
    with pytest.raises(ValueError, match="needs a non-empty 'training' and 'labels'"):
        image_label_cases(path, "CT", prompts=prompts, dataset="CT_Other")


def test_a_table_by_target_takes_the_sentences_of_its_values(prompts: PromptSentences) -> None:
    names = {"Liver": [1], "Pancreas": [4]}
    table = sentence_table(names, "CT", prompts=prompts, dataset="CT_Abdomen1K")
    liver, pancreas = table.values()
    assert liver == ["liver", "liver in abdominal ct", "ct imaging of the liver"]
    assert pancreas == list(sentence_table(names, "CT").values())[1]


def test_a_patch_is_asked_for_with_the_files_sentences(prompts: PromptSentences) -> None:
    """By an encoder that adds the modality, which the dataset's name tells."""
    table = prompts.table("CT_Abdomen1K")
    sentences = [text for words in table.values() for text in words]
    bank = EmbeddingBank(sentences, torch.eye(len(sentences)), "toy", modality_embedding=torch.arange(5.0)[:, None])
    labels = torch.tensor([[[[0, 1, 3]]]])
    for modality, added in (("CT", 0), ("MRI", 1)):
        transform = SampleQueriesd("label", SampleQueries(bank.lookup, max_queries=2))
        transform.set_random_state(seed=0)
        out = transform({"label": labels, "sentences": table, "modality": modality})
        assert "modality" not in out
        for value, query in zip(out["query_values"].tolist(), out["queries"] - added, strict=True):
            assert sentences[int(query.argmax())] in table[value]


def challenge_form(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The flat sample list back in the form that users download."""
    content: dict[str, Any] = {}
    for record in records:
        entry = content.setdefault(record["dataset"], {"instance_label": int(record["kind"] == "lesion")})
        entry[str(record["label"])] = record["prompts"]
    return content


def test_the_challenges_own_sentences(shared: Path, tmp_path: Path) -> None:
    """Read in their form, each is listed, and names the target that its dataset and label stand for."""
    records = json.loads((shared / "data" / "text" / "biomedsegfm_prompts.json").read_text())
    prompts = PromptSentences.load(write(tmp_path / "prompts.json", challenge_form(records)))
    assert len(prompts.datasets) == len({record["dataset"] for record in records})
    parser, listed = PromptParser(), set(prompts.all_sentences())
    for record in records:
        assert prompts.modality(record["dataset"]) == record["modality"]
        own = prompts.sentences(record["dataset"], record["label"])
        with_name = prompts.sentences(record["dataset"], record["label"], record["target"])
        assert with_name[0] == record["target"].lower()
        assert set(own) <= set(with_name) & listed
    for record in records[::20]:
        (target,) = parser.parse(prompts.sentences(record["dataset"], record["label"])[0], record["modality"])
        assert (target.name, target.kind) == (record["target"], record["kind"])


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A case list of one image and label."""
    label = np.zeros((24, 24, 24), np.uint8)
    label[4:12, 6:18, 6:18] = 1
    nib.save(nib.Nifti1Image(100.0 * label, np.eye(4)), tmp_path / "image.nii.gz")
    nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / "label.nii.gz")
    cases = [{"image": "image.nii.gz", "label": "label.nii.gz"}]
    return write(tmp_path / "cases.json", {"dataset": "CT_Abdomen1K", "training": cases, "validation": cases})


@pytest.fixture
def train(bundle_dir: Path, pairs: Path, tmp_path: Path) -> Callable[..., Any]:
    """Make the training workflow of ``train.json`` on the file's sentences, tiny."""
    content = {"CT_Abdomen1K": {"1": ["An unheard-of sentence about the liver"], "instance_label": 0}}
    prompts = write(tmp_path / "prompts.json", content)

    def make(**changes: Any) -> Any:
        return ConfigWorkflow(
            config_file=[str(bundle_dir / "configs" / f"{name}.json") for name in ("train", "small_network")],
            workflow_type="train",
            run_id="training",
            bundle_root=str(bundle_dir),
            data_list=str(pairs),
            prompts_json=str(prompts),
            output_dir=str(tmp_path / "out"),
            roi_size=[16, 16, 16],
            features=[4, 8],
            strides=[1, 2],
            query_dim=24,
            max_queries=2,
            batch_size=1,
            num_workers=0,
            val_interval=2,
            val_samples=1,
            segment_steps=[2],
            segment_warmup=[1],
            segment_lr=[0.001],
            device="$torch.device('cpu')",
            **changes,
        )

    return make


def test_training_takes_the_file_by_one_key(train: Callable[..., Any], tmp_path: Path) -> None:
    """The bank does not hold the sentence: one built from the file does the job, one without is refused at once."""
    with pytest.raises(RuntimeError) as caught:
        train().initialize()
    chain, error = "", caught.value
    while error is not None:
        chain, error = f"{chain}\n{error}", error.__cause__
    assert "no vector for 'an unheard-of sentence about the liver' and no text encoder configured" in chain
    sentences = PromptSentences.load(tmp_path / "prompts.json").all_sentences()
    EmbeddingBank(sentences, torch.ones(1, 384), "toy").save(tmp_path / "bank.safetensors")
    workflow = train(embeddings=str(tmp_path / "bank.safetensors"))
    workflow.initialize()
    workflow.run()
    assert (tmp_path / "out" / "model.pt").is_file()
