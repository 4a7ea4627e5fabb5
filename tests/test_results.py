"""Writing results: every format on the file's grid, masks from bits, all of the files or none."""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.errors import InputError
from scripts.request import Request, RequestedTarget, encode_request
from scripts.results import CheckFormatd, SaveResultsd, check_format
from scripts.transforms.reading import LoadVolume

AFFINE = np.array([[0.0, -2, 0, 10], [0.5, 0, 0, -7], [0, 0, 3, 4], [0, 0, 0, 1]])
SHAPE = (4, 5, 6)
NAMES = {3: "Liver", 300: "Left kidney"}


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(0).choice([0, 3, 300], size=SHAPE).astype(np.int32)


@pytest.fixture
def case(tmp_path: Path, labels: np.ndarray) -> Callable[..., dict[str, Any]]:
    """A postprocessed case of an image file in ``tmp_path / "in"``."""

    def make(suffix: str = ".nii.gz", **entries: Any) -> dict[str, Any]:
        source = tmp_path / "in" / f"scan{suffix}"
        source.parent.mkdir(exist_ok=True)
        voxels = np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE)
        if suffix == ".npz":
            prompts = entries.pop("text_prompts", {"1": "Liver", "2": "Left kidney", "instance_label": 0})
            extra = {} if prompts is None else {"text_prompts": prompts}
            np.savez(source, imgs=voxels.transpose(2, 1, 0), spacing=np.ones(3), **extra)
        else:
            nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "scan.nii.gz")
            itk.imwrite(itk.imread(str(tmp_path / "scan.nii.gz")), str(source))
        targets = tuple(
            RequestedTarget(name, id_, "CT", "anatomy", f"CT_{name}", name, "name", 1.0, (255, 0, 0))
            for id_, name in NAMES.items()
        )
        return {
            "image": LoadVolume()(source),
            "label_map": MetaTensor(labels[None]),
            "request": encode_request(Request(("text",), "CT", targets)),
            "report": {
                "image": {"name": source.name},
                "request": {"modality": "CT"},
                "structures": [],
                "bundle": {"name": "Medal S", "version": "1"},
            },
            **entries,
        }

    return make


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_nrrd_keeps_the_world(case: Callable, labels: np.ndarray, tmp_path: Path) -> None:
    """The same world as NIfTI, for an NRRD and a NIfTI source."""
    for suffix in (".nrrd", ".nii.gz"):
        out = tmp_path / f"out{suffix}"
        files = SaveResultsd(out, output_format="nrrd", save_preview=False)(case(suffix))["files"]
        assert names(out) == ["scan_seg.json", "scan_seg.nrrd"]
        image = LoadVolume()(files["label_map"])
        assert np.array_equal(image[0].numpy(), labels)
        assert np.allclose(image.affine, AFFINE, atol=1e-5)
        assert image.meta["stored_dtype"] == "uint16"


def test_nifti_of_other_sources(case: Callable, labels: np.ndarray, tmp_path: Path) -> None:
    files = SaveResultsd(tmp_path / "out", save_preview=False)(case(".nrrd"))["files"]
    image = nib.load(files["label_map"])
    assert np.array_equal(np.asarray(image.dataobj), labels)
    assert np.allclose(image.get_sform(), AFFINE, atol=1e-5)
    assert np.allclose(image.get_qform(), AFFINE, atol=1e-5)


def test_a_sheared_grid_has_an_sform_only(case: Callable, labels: np.ndarray, tmp_path: Path) -> None:
    """As after gantry tilt; NRRD is refused, since ITK would straighten it without a word."""
    sheared = AFFINE + np.eye(4, k=1) * 0.4
    data = case(".nrrd")
    data["image"].meta["original_affine"] = sheared
    image = nib.load(SaveResultsd(tmp_path / "a", save_preview=False)(data)["files"]["label_map"])
    assert int(image.header["qform_code"]) == 0
    assert np.allclose(image.affine, sheared, atol=1e-5)
    assert np.array_equal(np.asarray(image.dataobj), labels)
    with pytest.raises(InputError, match="choose nifti"):
        SaveResultsd(tmp_path / "b", save_preview=False, output_format="nrrd")(data)
    assert names(tmp_path / "b") == []


@pytest.mark.parametrize("output_format", ["nifti", "nrrd"])
def test_masks_come_from_bits(case: Callable, tmp_path: Path, output_format: str) -> None:
    """Masks may overlap; bit k of the planes is target k."""
    masks = np.random.default_rng(1).integers(0, 2, (2, *SHAPE)).astype(np.uint8)
    bits = torch.as_tensor(masks[0] | masks[1] << 1)[None]
    save = SaveResultsd(tmp_path / "out", save_masks=True, save_preview=False, output_format=output_format)
    files = save(case(mask_bits=bits))["files"]
    for mask, name in zip(masks, NAMES.values(), strict=True):
        image = LoadVolume()(files[f"mask of {name}"])
        assert np.array_equal(image[0].numpy(), mask)
        assert np.allclose(image.affine, AFFINE, atol=1e-5)
        assert image.meta["stored_dtype"] == "uint8"


def test_the_ninth_target_is_in_the_second_plane(case: Callable, tmp_path: Path) -> None:
    data = case()
    target = RequestedTarget("T", 1, "CT", "anatomy", "CT_T", "t", "name", 1.0, (0, 0, 0))
    targets = tuple(RequestedTarget(**{**target.__dict__, "name": f"T{i}", "id": i + 1}) for i in range(10))
    data["request"] = encode_request(Request(("t",), "CT", targets))
    bits = np.zeros((2, *SHAPE), np.uint8)
    bits[1, 1, 2, 3] = 0b01
    bits[1, 3, 2, 1] = 0b10
    files = SaveResultsd(tmp_path, save_masks=True, save_preview=False)(data | {"mask_bits": bits})["files"]
    found = [np.argwhere(np.asarray(nib.load(files[f"mask of T{i}"]).dataobj)).tolist() for i in range(10)]
    assert found == [[]] * 8 + [[[1, 2, 3]], [[3, 2, 1]]]


def test_a_case_may_have_a_name_of_its_own(case: Callable, tmp_path: Path) -> None:
    SaveResultsd(tmp_path / "a", save_preview=False)(case(name="first"))
    assert names(tmp_path / "a") == ["first_seg.json", "first_seg.nii.gz"]
    SaveResultsd(tmp_path / "b", save_preview=False, output_format="npz")(case(".npz", name="first"))
    assert names(tmp_path / "b") == ["first.npz", "first_seg.json"]
    with pytest.raises(InputError, match="without folders"):
        SaveResultsd(tmp_path / "c", save_preview=False)(case(name="../first"))


def test_instances_and_disagreement(case: Callable, tmp_path: Path) -> None:
    instances = np.arange(np.prod(SHAPE)).reshape(1, *SHAPE) * 4
    wanted = torch.rand(1, *SHAPE).half()
    data = case(instances=torch.as_tensor(instances), disagreement=wanted)
    SaveResultsd(tmp_path / "a", save_preview=False)(data)
    assert names(tmp_path / "a") == ["scan_instances.nii.gz", "scan_seg.json", "scan_seg.nii.gz"]
    files = SaveResultsd(tmp_path / "b", save_preview=False, save_report=False, save_disagreement=True)(data)["files"]
    assert names(tmp_path / "b") == ["scan_disagreement.nii.gz", "scan_instances.nii.gz", "scan_seg.nii.gz"]
    assert np.array_equal(np.asarray(nib.load(files["instances"]).dataobj), instances[0])
    assert np.array_equal(np.asarray(nib.load(files["disagreement"]).dataobj), wanted[0].float().numpy())


def segs(case: dict[str, Any], out: Path) -> np.ndarray:
    """``segs`` of a saved case, with the axes of ``imgs``."""
    SaveResultsd(out, save_preview=False, save_report=False, output_format="npz")(case)
    assert names(out) == ["scan.npz"]
    with np.load(out / "scan.npz") as content:
        return content["segs"]


def test_challenge_labels(case: Callable, labels: np.ndarray, tmp_path: Path) -> None:
    """The values of ``text_prompts``, in order or by a table; those of the targets where it has none."""
    table = np.zeros(301, int)
    table[[3, 300]] = 1, 2
    assert np.array_equal(segs(case(".npz"), tmp_path / "a"), table[labels].transpose(2, 1, 0))
    table[[3, 300]] = 9, 9
    given = case(".npz", npz_labels=json.dumps({"3": 9, "300": 9}))
    assert np.array_equal(segs(given, tmp_path / "b"), table[labels].transpose(2, 1, 0))
    assert np.array_equal(segs(case(".npz", text_prompts=None), tmp_path / "c"), labels.transpose(2, 1, 0))
    with pytest.raises(InputError, match="1 prompts were understood as 2 targets"):
        segs(case(".npz", text_prompts={"1": "both"}), tmp_path / "d")


def test_challenge_instances(case: Callable, tmp_path: Path) -> None:
    instances = np.random.default_rng(2).integers(0, 400, SHAPE)
    data = case(".npz", instances=torch.as_tensor(instances)[None], text_prompts={"1": "Cells", "instance_label": 1})
    found = segs(data, tmp_path / "out")
    assert np.array_equal(found, instances.transpose(2, 1, 0))
    assert found.dtype == np.uint16


def test_formats_are_checked_before_any_work(case: Callable, tmp_path: Path) -> None:
    for output_format, suffix, message in (
        ("dicom_seg", ".nii.gz", "no DICOM series"),
        ("npz", ".nii.gz", "no .npz file"),
        ("npz", ".npz", "would overwrite"),
        ("tiff", ".nii.gz", "must be one of nifti, nrrd, npz, dicom_seg"),
    ):
        case(suffix)
        with pytest.raises(InputError, match=message):
            check_format(output_format, tmp_path / "in" / f"scan{suffix}", tmp_path / "in")
    check = CheckFormatd("dicom_seg", tmp_path / "out")
    with pytest.raises(InputError, match="no DICOM series"):
        check({"image": str(tmp_path / "in" / "scan.nii.gz")})
    for left_to_the_reader in ({"image": str(tmp_path / "absent.nii.gz")}, {"image": None}):
        assert check(left_to_the_reader) is left_to_the_reader
    with pytest.raises(InputError, match="output_format"):
        SaveResultsd(tmp_path / "out", output_format="tiff")


@contextmanager
def small_files() -> Iterator[None]:
    """The operating system refuses to let a file grow beyond 8 KiB, as it does on a full disk.

    Not a fixture: pytest reports before it tears down, and its own output may be a file of more than that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("output_format", ["nifti", "nrrd"])
def test_a_full_disk_leaves_nothing(case: Callable, tmp_path: Path, output_format: str) -> None:
    """The label map fits, a later file does not."""
    noise = torch.randint(0, 60_000, (1, 40, 40, 40))
    data = case(instances=noise)
    out = tmp_path / "out"
    with small_files(), pytest.raises(InputError, match="nothing was kept"):
        SaveResultsd(out, save_preview=False, output_format=output_format)(data)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("kind", ["npz", "report"])
def test_an_error_while_writing_leaves_nothing(
    case: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    data = case(".npz" if kind == "npz" else ".nii.gz")
    out = tmp_path / "out"
    save = SaveResultsd(out, save_preview=False, output_format="npz" if kind == "npz" else "nifti")
    monkeypatch.setattr(*((np, "savez_compressed") if kind == "npz" else (Path, "write_text")), full)
    with pytest.raises(InputError, match="No space left on device"):
        save(data)
    assert list(out.iterdir()) == []
