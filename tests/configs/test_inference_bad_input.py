"""Everything a user can get wrong, through the real config: one clear message, and no file left behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.errors import find_user_error

AFFINE = np.diag([5.0, 5, 6, 1])
VOXELS = np.random.default_rng(0).normal(500, 100, (20, 18, 22)).astype(np.float32)


def save(path: Path, voxels: np.ndarray = VOXELS, affine: np.ndarray = AFFINE) -> str:
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return str(path)


def with_pixdim(path: Path, sizes: tuple[float, float, float]) -> str:
    """Voxel sizes written into the file itself, past nibabel's own repairs."""
    save(path)
    raw = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    header["pixdim"][1:4] = sizes
    path.write_bytes(header.binaryblock + bytes(raw[348:]))
    return str(path)


def non_finite(path: Path) -> str:
    voxels = VOXELS.copy()
    voxels[0, 0, :4] = [np.nan, np.inf, -np.inf, np.nan]
    return save(path, voxels)


def truncated(path: Path) -> str:
    save(path)
    path.write_bytes(path.read_bytes()[:9000])
    return str(path)


def colour(path: Path) -> str:
    return save(path, np.zeros((4, 5, 6), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])))


def other_layout(path: Path) -> str:
    torch.save({"backbone.first.weight": torch.zeros(3), "backbone.last.weight": torch.zeros(3)}, path)
    return str(path)


def junk(path: Path, content: bytes = b"junk") -> str:
    path.write_bytes(content)
    return str(path)


def mask(folder: Path, value: int = 1, affine: np.ndarray = AFFINE) -> str:
    return save(folder / "m.nii", np.full(VOXELS.shape, value, np.uint8), affine)


def blocked(path: Path) -> str:
    """A folder below a file cannot be made, whoever asks."""
    path.write_text("a file")
    return str(path / "below")


CASES: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "no image given": (lambda p: {"image": None}, "path of a file"),
    "no file": (lambda p: {"image": str(p / "no.nii.gz")}, "no such file"),
    "not an image": (lambda p: {"image": junk(p / "a.nii.gz")}, "not an image"),
    "truncated": (lambda p: {"image": truncated(p / "a.nii.gz")}, "truncated"),
    "2-D": (lambda p: {"image": save(p / "a.nii", VOXELS[0])}, "2-D"),
    "4-D": (lambda p: {"image": save(p / "a.nii", np.stack([VOXELS] * 2, -1))}, "2 volumes"),
    "colour": (lambda p: {"image": colour(p / "a.nii")}, "grey value"),
    "non-finite voxels": (lambda p: {"image": non_finite(p / "a.nii")}, "4 of 7920 voxels.*fill_non_finite"),
    "zero spacing": (lambda p: {"image": with_pixdim(p / "a.nii", (0, 1, 1))}, "voxel size"),
    "negative spacing": (lambda p: {"image": with_pixdim(p / "a.nii", (1, 1, -1))}, "voxel size"),
    "constant": (lambda p: {"image": save(p / "a.nii", np.full((8, 8, 8), 7, np.int16))}, "value 7"),
    "no prompts": (lambda p: {"prompts": []}, "no structure was asked for"),
    "prompts absent": (lambda p: {"prompts": None}, "prompts must be"),
    "blank prompts": (lambda p: {"prompts": ["", "  "]}, "no structure was asked for"),
    "prompt is no text": (lambda p: {"prompts": ["thalami", 3]}, "must be texts, got 3"),
    "unknown prompt": (lambda p: {"prompts": "hippocampal tail"}, "did you mean: Left hippocampus"),
    "untrained structure": (lambda p: {"prompts": "prostate"}, "not trained for.*Left thalamus"),
    "mask of another shape": (lambda p: {"prompt_mask": save(p / "m.nii", np.ones((20, 18, 21), np.uint8))}, "shape"),
    "mask elsewhere": (lambda p: {"prompt_mask": mask(p, affine=AFFINE + np.eye(4)[:, ::-1])}, "elsewhere"),
    "mask file missing": (lambda p: {"prompt_mask": str(p / "m.nii.gz")}, "no such file"),
    "mask of nothing asked": (lambda p: {"prompt_mask": mask(p, value=77)}, "none of the structures"),
    "mask with fractions": (lambda p: {"prompt_mask": save(p / "m.nii")}, "no whole numbers"),
    "too few masks": (lambda p: {"prompt_mask": [mask(p)]}, "1 prompt masks for 2"),
    "bad name table": (
        lambda p: {"prompt_mask": mask(p), "prompt_mask_names": {"one": "thalami"}},
        "prompt_mask_names must map",
    ),
    "names of others": (
        lambda p: {"prompt_mask": mask(p), "prompt_mask_names": {"1": "brain-stem"}},
        "names none of the targets",
    ),
    "output folder below a file": (lambda p: {"output_dir": blocked(p / "file")}, "cannot write to the output folder"),
    "no such kind of device": (lambda p: {"device": "tpu"}, "device 'tpu' cannot be used"),
    "no such device": (lambda p: {"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
    "impossible threshold": (lambda p: {"threshold": 2}, "threshold <= 1"),
    "no memory": (lambda p: {"memory_gb": 0}, "memory_gb > 0"),
    "format of another kind": (lambda p: {"output_format": "dicom_seg"}, "no DICOM series"),
    "weights missing": (lambda p: {"weights": str(p / "no.pt")}, "no weights"),
    "fine weights missing": (
        lambda p: {"stages": 2, "fine_weights": str(p / "no.pt")},
        "no weights.*with fine_weights",
    ),
    "weights of another layout": (
        lambda p: {"weights": other_layout(p / "w.pt")},
        "lacks backbone.*has unknown backbone.first",
    ),
    "weights are junk": (lambda p: {"weights": junk(p / "w.pt")}, "not a file of plain weights"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_refused(build: Callable, tmp_path: Path, case: str) -> None:
    make, message = CASES[case]
    out = tmp_path / "out"
    keys = {"image": save(tmp_path / "good.nii.gz"), "prompts": "thalami", "output_dir": str(out), **make(tmp_path)}
    before = set(tmp_path.rglob("*"))
    with pytest.raises(Exception, match=r".*") as caught:
        build(**keys).run()
    ours = find_user_error(caught.value)
    assert ours is not None, repr(caught.value)
    assert re.search(message, str(ours)), str(ours)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path not in before]


def test_untrained_structures_can_be_asked_for(
    build: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    image = save(tmp_path / "good.nii.gz")
    keys = {"image": image, "prompts": "thalami", "output_dir": str(out), "trained_structures": ["Brain-stem"]}
    with pytest.raises(Exception, match=r".*") as caught:
        build(**keys)
    assert "they know: Brain-stem" in str(find_user_error(caught.value))
    caplog.clear()
    build(**keys, allow_untrained=True, save_preview=False).run()
    report = json.loads((out / "good_seg.json").read_text())
    assert [row["trained"] for row in report["structures"]] == [False, False]
    assert "never trained for Left thalamus, Right thalamus" in caplog.text


def test_failure_while_writing_leaves_nothing(build: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The preview is the last of the files: when it fails, the label map written before it is gone too."""
    monkeypatch.setattr("scripts.results.draw_preview", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    out = tmp_path / "out"
    with pytest.raises(Exception, match=r".*") as caught:
        build(image=save(tmp_path / "good.nii.gz"), prompts="thalami", output_dir=str(out)).run()
    assert "No space left" in str(find_user_error(caught.value))
    assert not list(out.rglob("*"))
