"""The training task on real parts: a datastore with final labels, the bundle's configs, a tiny network, real runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import torch
from monai.bundle import ConfigParser
from monailabel.datastore.local import LocalDatastore

from lib.saved_labels import LabelReader
from lib.trainers import WeightsStore, trainers
from lib.trainers.case_list import write_case_list
from lib.trainers.fine_tuning import RUN_SCRIPT, FineTuning
from lib.trainers.fine_tuning_run import ORPHANED
from scripts.data.datasets import image_label_cases
from scripts.data.prompt_sentences import PromptSentences
from scripts.errors import InputError
from scripts.text import Terminology

TINY_NETWORK = {"query_dim": 24, "features": [4, 8], "strides": [1, 2]}
TINY_RUN = {
    **TINY_NETWORK,
    "roi_size": [16, 16, 16],
    "val_interval": 3,
    "val_samples": 2,
    "num_workers": 0,
    "device": "cpu",
    "threads": 1,
}
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
LEFT, STEM = "Left hippocampus", "Brain-stem"


@pytest.fixture(scope="module")
def tiny_bundle(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with weights of a tiny network."""
    root = tmp_path_factory.mktemp("tiny") / "bundle"
    (root / "models").mkdir(parents=True)
    for name in ("configs", "scripts", "models/text_embeddings.safetensors"):
        (root / name).symlink_to(bundle_dir / name)
    parser = ConfigParser()
    parser.read_config(bundle_dir / "configs" / "small_network.json")
    parser.update(TINY_NETWORK)
    torch.manual_seed(0)
    torch.save(parser.get_parsed_content("network_def").state_dict(), root / "models" / "model.pt")
    return root


@pytest.fixture
def datastore(tmp_path: Path) -> LocalDatastore:
    """Four images; three have a final label, whose values differ from file to file."""
    folder = tmp_path / "studies"
    folder.mkdir()
    rng = np.random.default_rng(0)
    labels = {}
    for index in range(4):
        label = np.zeros((16, 16, 16), dtype=np.uint8)
        label[3:6, 4:12, 4 : 10 + index] = 1
        label[9:13, 4:12, 4:12] = 2
        image = np.array([10.0, 200.0, 100.0])[label] + rng.normal(0, 5, label.shape)
        nib.save(nib.Nifti1Image(image.astype(np.float32), AFFINE), folder / f"study_{index}.nii.gz")
        labels[f"study_{index}"] = label
    store = LocalDatastore(str(folder))
    for index, info in enumerate(
        (
            [{"name": "left hippocampus", "idx": 1}, {"name": "brainstem", "idx": 2}],
            [{"name": STEM, "idx": 2}, {"name": LEFT, "idx": 1}],
            [{"name": STEM, "idx": 2}],
        )
    ):
        label = labels[f"study_{index}"]
        save(store, f"study_{index}", np.where(label == 2, 2, 0) if index == 2 else label, info)
    return store


def save(store: LocalDatastore, image: str, label: np.ndarray, info: Any, affine: np.ndarray = AFFINE) -> None:
    file = Path(store._datastore_path).parent / "upload.nii.gz"
    nib.save(nib.Nifti1Image(label.astype(np.uint8), affine), file)
    store.save_label(image, str(file), "final", {"label_info": info})


def task(bundle: Path, folder: Path, **training: Any) -> FineTuning:
    return FineTuning(bundle, WeightsStore(folder), "MRI", TINY_NETWORK, {**TINY_RUN, **training})


def reader() -> LabelReader:
    return LabelReader(Terminology.load(), "MRI")


def test_only_stages_that_answer_are_offered(bundle_dir: Path, tmp_path: Path):
    """The shipped bundle has weights for both; a server may answer with one."""
    offered = [
        FineTuning(bundle_dir, WeightsStore(tmp_path), "MRI", inference).config()["stage"]
        for inference in ({}, {"stages": "both"}, {"stages": "1"}, {"stages": [2]})
    ]
    assert offered == [["coarse", "fine"], ["coarse", "fine"], ["coarse"], ["fine"]]


# --- from saved labels to cases ---------------------------------------------------------------------------------------


def test_cases_ask_for_what_their_own_label_names(datastore: LocalDatastore, tmp_path: Path):
    cases = write_case_list(datastore, reader(), tmp_path / "run", val_split=0.34)
    assert (cases.training, cases.validation, cases.skipped) == (2, 1, 0)
    assert cases.structures == {LEFT: 2, STEM: 3}
    prompts = PromptSentences.load(cases.prompts)
    terms = Terminology.load()
    ids = {name: terms.target(name, "MRI").id for name in (LEFT, STEM)}
    seen = []
    for section in ("training", "validation"):
        for case in image_label_cases(cases.cases, "CT", section, prompts):
            assert case["modality"] == "MRI"
            values = {int(value) for value in np.unique(nib.load(case["label"]).get_fdata()) if value}
            assert values == set(case["sentences"])
            assert case["sentences"][ids[STEM]][0] == "brain-stem"
            assert nib.load(case["image"]).shape == (16, 16, 16)
            seen.append(values)
    assert sorted(map(len, seen)) == [1, 2, 2]
    assert set().union(*seen) == set(ids.values())


def test_files_of_a_run_are_named_by_number(datastore: LocalDatastore, tmp_path: Path):
    cases = write_case_list(datastore, reader(), tmp_path / "run")
    assert "study" not in cases.cases.read_text() + cases.prompts.read_text()


def test_a_structure_that_was_looked_for_in_vain_is_asked_for(datastore: LocalDatastore, tmp_path: Path):
    info = [{"name": STEM, "idx": 2}, {"name": LEFT, "idx": 1}]
    save(datastore, "study_3", np.zeros((16, 16, 16)), info)
    cases = write_case_list(datastore, reader(), tmp_path / "run")
    assert cases.structures == {LEFT: 3, STEM: 4}


def test_unusable_labels_are_left_out_and_counted(datastore: LocalDatastore, tmp_path: Path):
    label = np.ones((16, 16, 16))
    save(datastore, "study_0", label, [{"name": "left frobnicator", "idx": 1}])
    save(datastore, "study_1", label, [], AFFINE)
    save(datastore, "study_3", label, [{"name": STEM, "idx": 1}], np.diag([1.0, 1.0, 1.0, 1.0]))
    cases = write_case_list(datastore, reader(), tmp_path / "run")
    assert (cases.training, cases.validation, cases.skipped) == (1, 1, 3)


def test_the_same_cases_validate_every_run(datastore: LocalDatastore, tmp_path: Path):
    def held_out(name: str) -> set[Path]:
        cases = write_case_list(datastore, reader(), tmp_path / name, val_split=0.34)
        rows = image_label_cases(cases.cases, "MRI", "validation", PromptSentences.load(cases.prompts))
        return {Path(row["image"]).resolve() for row in rows}

    assert held_out("one") == held_out("two")


def test_nothing_to_learn_from_is_one_clear_line(tiny_bundle: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="none of the 0 final labels can be used"):
        task(tiny_bundle, tmp_path / "models")({}, LocalDatastore(str(tmp_path / "empty")))


# --- options ----------------------------------------------------------------------------------------------------------


def test_clients_are_shown_options_that_they_can_send_back(tiny_bundle: Path, tmp_path: Path):
    (name, one), *others = trainers(tiny_bundle, WeightsStore(tmp_path), "MRI", TINY_NETWORK).items()
    assert (name, others) == ("medal_s", [])
    info = json.loads(json.dumps(one.info()))
    assert info["config"]["stage"] == ["coarse"]
    assert info["config"]["steps"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "fine"}, "no stage 'fine' that answers here; there are: coarse"),
        ({"steps": "many"}, "are numbers"),
        ({"val_split": 1}, "val_split from 0 to below 1"),
        ({"tolerance": -1}, "tolerance from 0 on"),
    ],
)
def test_wrong_options_are_refused(
    tiny_bundle: Path, datastore: LocalDatastore, tmp_path: Path, options: dict[str, Any], message: str
):
    with pytest.raises(InputError, match=message):
        task(tiny_bundle, tmp_path / "models")(options, datastore)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_publishes_weights_that_fit_and_a_worse_one_does_not(
    tiny_bundle: Path, datastore: LocalDatastore, tmp_path: Path
):
    models = tmp_path / "models"
    shipped = (tiny_bundle / "models" / "model.pt").read_bytes()
    good = task(tiny_bundle, models, segment_lr=[0.01])({"steps": 30, "tolerance": 1}, datastore)
    assert good["published"] == 1, good
    assert (good["training"], good["validation"]) == (2, 1)
    store = WeightsStore(models)
    published = Path(store.current()["weights"])
    before = torch.load(tiny_bundle / "models" / "model.pt", weights_only=True)
    after = torch.load(published, weights_only=True)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key].half(), after[key]) for key in before)
    assert (tiny_bundle / "models" / "model.pt").read_bytes() == shipped
    record = store.versions()[0]
    assert (record["score"], record["score_before"]) == (good["score"], good["score_before"])
    # Patients' images and labels do not stay behind.
    assert not list(models.rglob("*.nii.gz"))
    # From the published weights on; a rate that ruins them.
    content = published.read_bytes()
    bad = task(tiny_bundle, models, segment_lr=[3.0])({"steps": 3, "tolerance": 0}, datastore)
    assert bad["score_before"] == pytest.approx(good["score"], abs=0.02)  # stored in half precision
    assert bad["published"] is None, bad
    assert "not put into use" in bad["reason"]
    assert store.in_use() == {"weights": 1}
    assert published.read_bytes() == content


@pytest.mark.slow
def test_a_run_whose_loss_is_no_number_fails_and_changes_nothing(
    tiny_bundle: Path, datastore: LocalDatastore, tmp_path: Path
):
    with pytest.raises(RuntimeError, match="the run failed; the present weights stay"):
        task(tiny_bundle, tmp_path / "models", **{"loss#smooth": float("nan")})({"steps": 6}, datastore)
    assert WeightsStore(tmp_path / "models").current() == {}


@pytest.mark.slow
def test_a_killed_run_fails_and_changes_nothing(tiny_bundle: Path, datastore: LocalDatastore, tmp_path: Path):
    """kill -9 on the training process; meanwhile a second run is refused."""
    models = tmp_path / "models"
    one = task(tiny_bundle, models, val_interval=100000)
    errors: list[BaseException] = []

    def train() -> None:
        try:
            one({"steps": 100000}, datastore)
        except RuntimeError as e:
            errors.append(e)

    thread = threading.Thread(target=train)
    thread.start()
    child = wait_for_child(models)
    with pytest.raises(InputError, match="a run is going on"):
        task(tiny_bundle, models)({}, datastore)
    os.kill(child.pid, signal.SIGKILL)
    thread.join(60)
    assert "was killed (signal 9)" in str(errors[0])
    assert WeightsStore(models).current() == {}
    assert not list(models.rglob("*.nii.gz"))


def test_a_run_ends_with_the_process_that_started_it(tiny_bundle: Path, tmp_path: Path):
    """The parent given is not the one that started it, as if that had been killed."""
    settings = {"bundle_root": str(tiny_bundle), "configs": [], "overrides": {}, "scores": "", "parent": 1}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    command = [sys.executable, str(RUN_SCRIPT), str(tmp_path / "settings.json")]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == ORPHANED


def wait_for_child(models: Path, seconds: float = 900) -> psutil.Process:
    """The training process, once the present weights are scored and training has begun."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for child in psutil.Process().children():
            if any("fine_tuning_run.py" in part for part in child.cmdline()) and list(models.rglob("scores.json")):
                return child
        time.sleep(0.05)
    raise AssertionError("no training process was started")
