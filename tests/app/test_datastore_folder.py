"""The folder's datastore: checked labels, atomic writes, and nothing spoilt by a process that is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from lib.datastore import FolderStore, local
from lib.server.errors import RequestError
from scripts.errors import InputError

AFFINE = np.array([[-2.0, 0, 0, 90], [0, 0, 3, -20], [0, -2.5, 0, 10], [0, 0, 0, 1]])
SHAPE = (12, 10, 8)
INFO = {"label_info": [{"name": "Brain-stem", "idx": 3}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    studies = tmp_path / "studies"
    studies.mkdir()
    values = np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16)
    nib.save(nib.Nifti1Image(values, AFFINE), studies / "head.nii.gz")
    return studies


@pytest.fixture
def store(folder: Path) -> FolderStore:
    return FolderStore(str(folder))


def labels(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).choice([0, 0, 1, 3], SHAPE).astype(np.uint8)


def saved(store: FolderStore, tag: str = "final") -> np.ndarray:
    return np.asarray(nib.load(store.get_label_uri("head", tag)).dataobj)


@pytest.mark.parametrize("name", ["l.nii.gz", "l.nii", "l.nrrd", "l.bin"])
def test_every_kind_of_label_file_is_kept_on_the_grid_of_the_image(
    store: FolderStore, tmp_path: Path, name: str
) -> None:
    path, values = tmp_path / name, labels()
    if name.endswith(".bin"):
        path.write_bytes(values.tobytes(order="F"))
    else:
        nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / "first.nii.gz")
        sitk.WriteImage(sitk.ReadImage(str(tmp_path / "first.nii.gz")), str(path))
    assert store.save_label("head", str(path), "final", INFO) == "head"
    assert np.array_equal(saved(store), values)
    assert np.allclose(nib.load(store.get_label_uri("head", "final")).affine, AFFINE, atol=1e-4)
    assert store.get_label_info("head", "final")["label_info"] == INFO["label_info"]
    assert store.status() == {"total": 1, "completed": 1, "label_tags": {"final": 1}}
    assert [Path(item["label"]).name for item in store.datalist()] == ["head.nii.gz"]


def test_a_label_with_other_axes_is_turned_to_the_image(store: FolderStore, tmp_path: Path) -> None:
    image = nib.Nifti1Image(labels(), AFFINE)
    for turn in ([[2, 1], [0, -1], [1, 1]], [[0, -1], [1, -1], [2, -1]]):
        nib.save(image.as_reoriented(np.array(turn)), tmp_path / "t.nii.gz")
        store.save_label("head", str(tmp_path / "t.nii.gz"), "final", INFO)
        assert np.array_equal(saved(store), labels())


def moved(by: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += by
    return affine


@pytest.mark.parametrize(
    ("values", "affine", "message"),
    [
        (labels(), moved(3.0), "1.5 voxels off"),
        (labels(), np.diag([1.0, 1, 1, 1]), "other voxels"),
        (labels()[:-1], AFFINE, r"shape \(11, 10, 8\)"),
        (labels().astype(np.float32) + 0.5, AFFINE, "no whole numbers"),
        (labels().astype(np.int16) - 1, AFFINE, "no whole numbers"),
        (labels().astype(np.float32) * 1e6, AFFINE, "largest allowed"),
    ],
)
def test_what_is_no_label_of_this_image_is_refused(
    store: FolderStore, tmp_path: Path, values: np.ndarray, affine: np.ndarray, message: str
) -> None:
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "l.nii.gz")
    with pytest.raises(InputError, match=message):
        store.save_label("head", str(tmp_path / "l.nii.gz"), "final", INFO)
    assert store.get_labeled_images() == []
    assert store.get_label_uri("head", "final") == ""


def test_raw_bytes_of_another_size_are_refused(store: FolderStore, tmp_path: Path) -> None:
    (tmp_path / "l.bin").write_bytes(b"\0" * 959)
    with pytest.raises(InputError, match="959 bytes, the image 960 voxels"):
        store.save_label("head", str(tmp_path / "l.bin"), "final", INFO)


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/b", "..", "", ".hidden", "a\0b", "x" * 200])
def test_names_cannot_lead_out_of_the_folder(store: FolderStore, folder: Path, tmp_path: Path, name: str) -> None:
    nib.save(nib.Nifti1Image(labels(), AFFINE), tmp_path / "l.nii.gz")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RequestError) as refused:
        store.save_label("head", str(tmp_path / "l.nii.gz"), name, INFO)
    assert refused.value.status_code == 400
    with pytest.raises(RequestError) as unknown:
        store.save_label(name, str(tmp_path / "l.nii.gz"), "final", INFO)
    assert unknown.value.status_code == 404
    if name:
        with pytest.raises(RequestError):
            store.add_image(name, str(tmp_path / "l.nii.gz"), {})
    assert sorted(tmp_path.rglob("*")) == before


def test_images_come_and_go(store: FolderStore, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(labels(), AFFINE), tmp_path / "new.nii.gz")
    assert store.add_image("", str(tmp_path / "new.nii.gz"), {"note": "x"}) == "new"
    assert set(store.list_images()) == {"head", "new"}
    assert store.get_image_info("new")["note"] == "x"
    (tmp_path / "text.nii.gz").write_text("no image")
    with pytest.raises(InputError):
        store.add_image("bad", str(tmp_path / "text.nii.gz"), {})
    store.save_label("new", str(tmp_path / "new.nii.gz"), "original", INFO)
    store.remove_label("new", "original")
    with pytest.raises(RequestError):
        store.remove_label("new", "original")
    store.remove_image("new")
    with pytest.raises(RequestError):
        store.remove_image("new")
    assert store.list_images() == ["head"]


def test_a_damaged_index_is_made_anew_and_kept_aside(folder: Path, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(labels(), AFFINE), tmp_path / "l.nii.gz")
    FolderStore(str(folder)).save_label("head", str(tmp_path / "l.nii.gz"), "final", INFO)
    index = folder / "datastore_v2.json"
    index.write_text(index.read_text()[:40])
    again = FolderStore(str(folder))
    assert again.get_labeled_images() == ["head"]
    assert np.array_equal(saved(again), labels())
    assert (folder / "datastore_v2.damaged").is_file()
    json.loads(index.read_text())


def _save_for_ever(folder: str, sources: list[str]) -> None:
    store = FolderStore(folder)
    number = 0
    while True:
        number = (number + 1) % len(sources)
        store.save_label("head", sources[number], "final", {**INFO, "number": number})


def test_kill_while_saving_leaves_whole_files(folder: Path, tmp_path: Path) -> None:
    sources = []
    for number in range(3):
        sources.append(str(tmp_path / f"{number}.nii.gz"))
        nib.save(nib.Nifti1Image(labels(number), AFFINE), sources[-1])
    expected = [labels(number) for number in range(3)]
    fork = multiprocessing.get_context("fork")
    for attempt in range(8):
        process = fork.Process(target=_save_for_ever, args=(str(folder), sources))
        process.start()
        time.sleep(0.3 * 1.3**attempt)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        store = FolderStore(str(folder))
        assert store.list_images() == ["head"]
        if store.get_labeled_images():
            assert any(np.array_equal(saved(store), one) for one in expected)
    assert store.get_labeled_images() == ["head"], "nothing was ever saved: the test is too quick"
    assert not (folder / "datastore_v2.damaged").exists()


def test_full_disk_says_so_and_keeps_the_earlier_label(store: FolderStore, folder: Path, tmp_path: Path) -> None:
    import resource

    nib.save(nib.Nifti1Image(labels(), AFFINE), tmp_path / "l.nii.gz")
    store.save_label("head", str(tmp_path / "l.nii.gz"), "final", INFO)
    nib.save(nib.Nifti1Image(labels(5), AFFINE), tmp_path / "l.nii.gz")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))  # as a full disk: no file can grow any more
    try:
        with pytest.raises(RequestError) as full:
            store.save_label("head", str(tmp_path / "l.nii.gz"), "final", INFO)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert full.value.status_code == 507
    assert np.array_equal(saved(store), labels())
    assert not list(folder.rglob(".unfinished_*"))
    assert np.array_equal(saved(FolderStore(str(folder))), labels())


def test_files_added_by_others_are_noticed(folder: Path, tmp_path: Path) -> None:
    store = local(folder)
    nib.save(nib.Nifti1Image(labels(), AFFINE), tmp_path / "late.nii.gz")
    (tmp_path / "late.nii.gz").rename(folder / "late.nii.gz")
    store.refresh()
    assert set(store.list_images()) == {"head", "late"}


def _note_images(folder: str, who: str, times: int) -> None:
    store = FolderStore(folder)
    for number in range(times):
        store.update_image_info("head", {f"{who}{number}": number})


def test_processes_keep_each_others_entries(store: FolderStore, folder: Path, tmp_path: Path) -> None:
    """A server, a training run and a batch write the same index, each with its own copy in memory."""
    nib.save(nib.Nifti1Image(labels(), AFFINE), tmp_path / "l.nii.gz")
    fork = multiprocessing.get_context("fork")
    others = [fork.Process(target=_note_images, args=(str(folder), who, 30)) for who in "ab"]
    for other in others:
        other.start()
    store.save_label("head", str(tmp_path / "l.nii.gz"), "final", INFO)
    for other in others:
        other.join()
    store.update_label_info("head", "final", {"seen": True})
    again = FolderStore(str(folder))
    assert {f"{who}{number}" for who in "ab" for number in range(30)} <= set(again.get_image_info("head"))
    assert again.get_label_info("head", "final")["label_info"] == INFO["label_info"]
    assert again.get_label_info("head", "final")["seen"] is True


def test_labels_of_another_process_are_seen_at_once(store: FolderStore, folder: Path, tmp_path: Path) -> None:
    """A batch saves its labels in a process of its own."""
    nib.save(nib.Nifti1Image(labels(), AFFINE), tmp_path / "l.nii.gz")
    assert store.get_labels_by_image_id("head") == {}
    FolderStore(str(folder)).save_label("head", str(tmp_path / "l.nii.gz"), "original", INFO)
    assert list(store.get_labels_by_image_id("head")) == ["original"]
    assert store.get_label_info("head", "original")["label_info"] == INFO["label_info"]
