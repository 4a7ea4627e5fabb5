"""Reading volumes: geometry kept, and everything unsound refused in one line."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import psutil
import pytest

from scripts.errors import InputError
from scripts.transforms.reading import LoadVolume, LoadVolumed, image_name

AFFINE = np.array([[0.0, -2, 0, 10], [0.5, 0, 0, -7], [0, 0, 3, 4], [0, 0, 0, 1]])
VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


def save(path: Path, voxels: np.ndarray = VOXELS, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def patch_header(path: Path, **fields: object) -> Path:
    """Change header fields in the file itself: nibabel would mend them on saving."""
    raw = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    raw[:348] = header.binaryblock
    path.write_bytes(bytes(raw))
    return path


def pixdim(*sizes: float) -> np.ndarray:
    return np.array([1, *sizes, 1, 1, 1, 1], dtype=np.float32)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mgz"])
def test_nibabel_formats_keep_voxels_and_affine(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scan{suffix}"
    image_class = nib.MGHImage if suffix == ".mgz" else nib.Nifti1Image
    nib.save(image_class(VOXELS, AFFINE), path)
    image = LoadVolume()(path)
    assert image.shape == (1, 4, 5, 6)
    assert np.array_equal(image[0].numpy(), VOXELS)
    assert np.allclose(image.affine, AFFINE)
    assert tuple(image.meta["spatial_shape"]) == (4, 5, 6)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_itk_formats_agree_with_nifti(tmp_path: Path, suffix: str) -> None:
    """ITK's world is LPS; ours is RAS whatever the file."""
    nifti = save(tmp_path / "scan.nii.gz")
    itk.imwrite(itk.imread(str(nifti)), str(tmp_path / f"scan{suffix}"))
    image = LoadVolume()(tmp_path / f"scan{suffix}")
    assert np.array_equal(image[0].numpy(), VOXELS)
    assert np.allclose(image.affine, AFFINE, atol=1e-5)
    assert np.allclose(image.meta["original_affine"], AFFINE, atol=1e-5)


def test_an_sform_that_scales_is_taken_as_it_is(tmp_path: Path) -> None:
    """MONAI's own reader replaces an sform that disagrees with the voxel size by the qform."""
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.set_sform(AFFINE * 1.1, 2)
    nib.save(image, tmp_path / "scan.nii")
    assert np.allclose(LoadVolume()(tmp_path / "scan.nii").affine[:3], (AFFINE * 1.1)[:3])


def test_trailing_axis_of_one_is_no_fourth_dimension(tmp_path: Path) -> None:
    assert LoadVolume()(save(tmp_path / "scan.nii", VOXELS[..., None])).shape == (1, 4, 5, 6)
    assert LoadVolume()(save(tmp_path / "five.nii", VOXELS[..., None, None])).shape == (1, 4, 5, 6)


def test_one_slice_is_a_volume(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOXELS[:, :, :1], AFFINE)
    nib.save(image, tmp_path / "scan.nii")
    assert LoadVolume()(tmp_path / "scan.nii").shape == (1, 4, 5, 1)


def test_stored_type_is_remembered(tmp_path: Path) -> None:
    assert LoadVolume()(save(tmp_path / "a.nii", VOXELS.astype(np.uint8))).meta["stored_dtype"] == "uint8"
    scaled = nib.Nifti1Image(VOXELS.astype(np.uint8), AFFINE)
    scaled.header.set_slope_inter(2.0, 1.0)
    nib.save(scaled, tmp_path / "b.nii")
    assert LoadVolume()(tmp_path / "b.nii").meta["stored_dtype"] != "uint8"


def rgb(path: Path) -> Path:
    dtype = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    return save(path / "scan.nii.gz", np.zeros((4, 5, 6), dtype))


def truncated(path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    file = save(path / "scan.nii.gz", noise)
    file.write_bytes(file.read_bytes()[:3000])
    return file


def damaged(path: Path) -> Path:
    file = path / "scan.nii.gz"
    whole = save(path / "whole.nii").read_bytes()
    packed = bytearray(gzip.compress(whole, mtime=0))
    packed[60:90] = bytes(30)
    file.write_bytes(bytes(packed))
    return file


def truncated_plain(path: Path) -> Path:
    file = save(path / "scan.nii")
    file.write_bytes(file.read_bytes()[:400])
    return file


def text(path: Path, name: str) -> Path:
    (path / name).write_text("this is no image\n" * 40)
    return path / name


def mha(path: Path, spacing: str = "1 1 1", shape: str = "4 5 6", channels: int = 1) -> Path:
    """A MetaImage of 120 zero bytes with a header of its own."""
    lines = [
        "ObjectType = Image",
        f"NDims = {len(shape.split())}",
        f"DimSize = {shape}",
        f"ElementSpacing = {spacing}",
        f"ElementNumberOfChannels = {channels}",
        "ElementType = MET_UCHAR",
        "ElementDataFile = LOCAL\n",
    ]
    (path / "scan.mha").write_bytes("\n".join(lines).encode() + bytes(120))
    return path / "scan.mha"


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: p / "nothing.nii.gz", "no such file"),
    "no path": (lambda p: None, "must be the path"),
    "folder": (lambda p: p, "is a folder"),
    "picture": (lambda p: text(p, "a.png"), "2-D picture"),
    "other format": (lambda p: text(p, "a.txt"), "known endings"),
    "text as nii.gz": (lambda p: text(p, "a.nii.gz"), "not an image"),
    "text as nii": (lambda p: text(p, "a.nii"), "not an image"),
    "text as mgz": (lambda p: text(p, "a.mgz"), "not an image"),
    "text as nrrd": (lambda p: text(p, "a.nrrd"), "not an image"),
    "text as mha": (lambda p: text(p, "a.mha"), "not an image"),
    "empty": (lambda p: (p / "a.nii.gz").write_bytes(b"") or p / "a.nii.gz", "not an image"),
    "truncated": (truncated, "truncated or damaged"),
    "truncated plain": (truncated_plain, "truncated or damaged"),
    "damaged": (damaged, "damaged"),
    "2-D": (lambda p: save(p / "a.nii", VOXELS[:, :, 0]), "2-D image"),
    "4-D": (lambda p: save(p / "a.nii", np.stack([VOXELS] * 3, axis=-1)), "3 volumes"),
    "5-D": (lambda p: save(p / "a.nii", np.stack([VOXELS] * 3, axis=-1)[:, :, :, None]), "3 volumes"),
    "rgb": (rgb, "3 values per voxel"),
    "complex": (lambda p: save(p / "a.nii", VOXELS.astype(np.complex64)), "complex"),
    "zero spacing": (lambda p: patch_header(save(p / "a.nii"), pixdim=pixdim(0, 2, 3)), r"voxel size \[0.0, 2.0"),
    "negative spacing": (lambda p: patch_header(save(p / "a.nii"), pixdim=pixdim(1, -2, 3)), r"voxel size \[1.0, -2.0"),
    "nan spacing": (lambda p: patch_header(save(p / "a.nii"), pixdim=pixdim(1, np.nan, 3)), "voxel size"),
    "singular": (lambda p: patch_header(save(p / "a.nii"), srow_z=[1, 0, 0.1, 0], srow_y=[10, 0, 1, 0]), "singular"),
    "zero row": (lambda p: patch_header(save(p / "a.nii"), srow_z=[0, 0, 0, 0]), "singular"),
    "nan affine": (lambda p: patch_header(save(p / "a.nii"), srow_x=[np.nan] * 4), "NaN"),
    "mha zero spacing": (lambda p: mha(p, spacing="0 1 1"), "scan.mha"),
    "mha colour": (lambda p: mha(p, channels=3), "3 values"),
    "mha 2-D": (lambda p: mha(p, spacing="1 1", shape="4 5"), "2-D"),
    "mha truncated": (lambda p: mha(p, shape="400 5 6"), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_unsound_files_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        LoadVolumed("image")({"image": make(tmp_path)})
    assert "\n" not in str(caught.value)


def test_names_lose_their_image_suffix_only() -> None:
    assert image_name("/a/head.T1.nii.gz") == "head.T1"
    assert image_name("head.MHA") == "head"
    assert image_name("c.nrrd") == "c"


def test_a_volume_larger_than_memory_is_refused_before_it_is_read(tmp_path: Path, monkeypatch) -> None:
    image = nib.Nifti1Image(np.zeros((64, 64, 64), np.uint8), np.eye(4))
    path = tmp_path / "large.nii.gz"
    nib.save(image, path)
    path.write_bytes(path.read_bytes()[:400])  # the header alone: reading voxels would complain about that
    memory = psutil.virtual_memory()._replace(available=2**20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with pytest.raises(InputError, match=r"large.nii.gz: a volume of 64 x 64 x 64 voxels needs about 0.0 GiB"):
        LoadVolume()(path)
