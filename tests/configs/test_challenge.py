"""The challenge overlay: a folder of NPZ files in, NPZ files of the same names out, with the labels asked for."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from scripts.errors import find_user_error

SHAPE = (12, 16, 20)  # D, H, W


def blobs() -> np.ndarray:
    """Dim tissue with two bright boxes that do not touch."""
    image = np.random.default_rng(0).integers(20, 60, SHAPE, dtype=np.uint8)
    image[2:6, 3:8, 2:8] = 240
    image[7:11, 9:14, 11:18] = 240
    return image


def save(folder: Path, name: str, prompts: dict[str, Any] | None) -> Path:
    folder.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {"imgs": blobs(), "spacing": np.array([6.0, 6.0, 6.0])}
    if prompts is not None:
        arrays["text_prompts"] = np.array(prompts, dtype=object)
    np.savez_compressed(folder / f"{name}.npz", **arrays)
    return folder / f"{name}.npz"


def segs_of(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as file:
        assert file.files == ["segs"]
        return file["segs"]


@pytest.fixture
def challenge(
    inference_config: Path, bundle_dir: Path, quick: dict[str, Any], thresholder: type, no_weights: Path, tmp_path: Path
) -> Callable[..., ConfigWorkflow]:
    """A run over ``tmp_path/inputs`` by a network that finds what is bright, for the first query alone."""

    def make(real: bool = False, **override: Any) -> ConfigWorkflow:
        files = [str(inference_config.with_name(f"{n}.json")) for n in ("inference", "batch_inference", "challenge")]
        keys = {
            **quick,
            "bundle_root": str(bundle_dir),
            "images": str(tmp_path / "inputs"),
            "output_dir": str(tmp_path / "outputs"),
            **({} if real else {"network_def": thresholder((4.0, 1e3, 1e3))}),
            "weights": str(no_weights),
            "trained_structures": None,
            **override,
        }
        workflow = ConfigWorkflow(config_file=files, workflow_type="infer", logging_file=False, **keys)
        workflow.initialize()
        return workflow

    return make


def test_labels_are_the_keys_of_the_prompts(challenge: Callable[..., ConfigWorkflow], tmp_path: Path) -> None:
    save(
        tmp_path / "inputs", "CT_a", {"4": "Liver in abdominal CT", "9": "Spleen in abdominal CT", "instance_label": 0}
    )
    challenge().run()
    assert [path.name for path in (tmp_path / "outputs").glob("*.npz")] == ["CT_a.npz"]
    segs = segs_of(tmp_path / "outputs" / "CT_a.npz")
    assert segs.shape == SHAPE
    assert segs.dtype in (np.uint8, np.uint16)
    assert set(np.unique(segs)) == {0, 4}
    truth, found = blobs() > 200, segs == 4
    assert 2 * (truth & found).sum() / (truth.sum() + found.sum()) > 0.8


def test_a_sentence_for_two_targets_gives_both_its_label(
    challenge: Callable[..., ConfigWorkflow], thresholder: type, tmp_path: Path
) -> None:
    """Left and right kidney are two queries, of which the second is what is found here."""
    save(tmp_path / "inputs", "a", {"7": "Both kidneys seen on CT", "8": "liver on CT"})
    challenge(network_def=thresholder((1e3, 4.0, 1e3))).run()
    assert set(np.unique(segs_of(tmp_path / "outputs" / "a.npz"))) == {0, 7}


def test_instances_are_numbered(challenge: Callable[..., ConfigWorkflow], tmp_path: Path) -> None:
    save(tmp_path / "inputs", "CT_b", {"1": "Liver tumors in CT", "instance_label": 1})
    challenge().run()
    segs = segs_of(tmp_path / "outputs" / "CT_b.npz")
    assert set(np.unique(segs)) == {0, 1, 2}
    assert segs[4, 5, 5] != segs[9, 11, 14] != 0


def test_files_without_sound_prompts_are_told_and_left_out(
    challenge: Callable[..., ConfigWorkflow], tmp_path: Path
) -> None:
    save(tmp_path / "inputs", "CT_a", None)
    save(tmp_path / "inputs", "CT_b", {"1": "the flux capacitor"})
    save(tmp_path / "inputs", "CT_c", {"1": "liver"})
    (tmp_path / "inputs" / "CT_d.npz").write_bytes(b"no archive")
    with pytest.raises(Exception, match=r".*") as caught:
        challenge().run()
    assert "3 of 4 cases failed" in str(find_user_error(caught.value))
    assert [path.name for path in (tmp_path / "outputs").glob("*.npz")] == ["CT_c.npz"]
    with (tmp_path / "outputs" / "failures.csv").open() as file:
        reasons = {row["case"]: row["reason"] for row in csv.DictReader(file)}
    assert "no text_prompts" in reasons["CT_a"]
    assert "flux capacitor" in reasons["CT_b"]
    assert "not an NPZ file" in reasons["CT_d"]


def test_the_images_own_folder_is_refused(challenge: Callable[..., ConfigWorkflow], tmp_path: Path) -> None:
    save(tmp_path / "inputs", "CT_a", {"1": "liver"})
    with pytest.raises(Exception, match=r".*") as caught:
        challenge(output_dir=str(tmp_path / "inputs")).run()
    assert "choose another output_dir" in str(find_user_error(caught.value))


@pytest.mark.slow
def test_real_lesion_stacks(
    shared: Path, challenge: Callable[..., ConfigWorkflow], random_weights: Path, tmp_path: Path
) -> None:
    """Real CT stacks, with sentences added, through the real network of random weights: geometry and file names."""
    (tmp_path / "inputs").mkdir()
    shapes = {}
    for path in sorted((shared / "data" / "ct_lesion_npz").glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        shapes[path.name] = arrays["imgs"].shape
        arrays["text_prompts"] = np.array({"1": "Lesions in whole body CT", "instance_label": 1}, dtype=object)
        np.savez_compressed(tmp_path / "inputs" / path.name, **arrays)
    assert shapes
    torch.manual_seed(0)
    challenge(real=True, weights=str(random_weights)).run()
    for name, shape in shapes.items():
        assert segs_of(tmp_path / "outputs" / name).shape == shape
