"""Query, segment, correct, save as DICOM SEG, read back, by another station too; the archive down and back."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
from monailabel.client.client import MONAILabelClientException

from lib.datastore.archive import Archive
from lib.datastore.archive_store import ArchiveStore
from scripts.text.terminology import Terminology

pytestmark = pytest.mark.e2e
QUESTION = {"prompt": "both hippocampi and the brain-stem"}
FOUND = ["Left hippocampus", "Right hippocampus", "Brain-stem"]


def ask(clinic: Any, **params: Any) -> tuple[Path, dict[str, Any]]:
    file, answer = clinic.client.infer("medal_s_mri", clinic.series, {**QUESTION, **params})
    return Path(file), answer


def label_info(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "idx": value} for name, value in answer["label_names"].items()]


def keep(file: Path, wanted: list[int], folder: Path) -> tuple[Path, np.ndarray]:
    """The label map with only some of its values."""
    image = nib.load(file)
    labels = np.asarray(image.dataobj).astype(np.uint8)
    labels[~np.isin(labels, wanted)] = 0
    path = folder / "corrected.nii.gz"
    nib.save(nib.Nifti1Image(labels, image.affine), path)
    return path, labels


def test_answer_lies_on_the_series(fresh: Any) -> None:
    file, answer = ask(fresh)
    image = nib.load(file)
    first, last = (pydicom.dcmread(fresh.files[k]) for k in (0, -1))
    assert image.shape == (first.Columns, first.Rows, len(fresh.files))
    corner = np.diag([-1, -1, 1, 1]) @ image.affine @ [0, 0, len(fresh.files) - 1, 1]
    assert np.allclose(corner[:3], np.array(last.ImagePositionPatient, dtype=float), atol=1e-3)
    assert list(answer["label_names"]) == FOUND
    labels = np.asarray(image.dataobj)
    left, right = (
        nib.affines.apply_affine(image.affine, np.argwhere(labels == answer["label_names"][name])).mean(axis=0)
        for name in FOUND[:2]
    )
    assert left[0] < -10 < 10 < right[0]  # RAS: the patient's left is negative
    assert answer["structures"]["Brain-stem"]["volume_ml"] > 15


@pytest.mark.parametrize("present", [[3], [2, 3], [1, 2, 3]])
def test_each_segment_has_its_own_name_whichever_are_present(fresh: Any, tmp_path: Path, present: list[int]) -> None:
    file, answer = ask(fresh)
    path, labels = keep(file, present, tmp_path)
    fresh.client.save_label(fresh.series, str(path), params={"label_info": label_info(answer)})
    (seg,) = fresh.segs()
    source = pydicom.dcmread(fresh.files[0])
    assert (seg.PatientID, seg.StudyInstanceUID) == (source.PatientID, source.StudyInstanceUID)
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == fresh.series
    terminology = Terminology.load()
    assert [item.SegmentLabel for item in seg.SegmentSequence] == [FOUND[value - 1] for value in present]
    for item, value in zip(seg.SegmentSequence, present, strict=True):
        codes = terminology.target(FOUND[value - 1], "MRI").concept.codes
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        assert (kind.CodeValue, kind.CodingSchemeDesignator) == (codes.type.value, "SCT")
        if codes.modifier:
            assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == codes.modifier.meaning
        frames = [
            plane
            for plane, group in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True)
            if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == item.SegmentNumber
        ]
        assert sum(int(plane.sum()) for plane in frames) == int((labels == value).sum())
    status = requests.get(f"{fresh.server.url}/datastore/").json()
    assert (status["total"], status["completed"]) == (len(fresh.series_ids("MR")), 1)


def test_saved_label_comes_back_here_and_at_another_station(fresh: Any, tmp_path: Path, bundle_dir: Path) -> None:
    file, answer = ask(fresh)
    path, labels = keep(file, [1, 3], tmp_path)
    fresh.client.save_label(fresh.series, str(path), params={"label_info": label_info(answer)})
    back = nib.load(fresh.client.download_label(fresh.series, "final"))
    assert np.array_equal(np.asarray(back.dataobj), labels)
    other = ArchiveStore(Archive(fresh.archive.url), bundle_dir, {"Modality": "MR"}, cache_path=str(tmp_path / "other"))
    (pair,) = other.datalist()
    read = nib.load(pair["label"])
    names = {item["name"]: item["idx"] for item in other.get_label_info(fresh.series, "final")["label_info"]}
    assert list(names) == ["Left hippocampus", "Brain-stem"]
    assert np.array_equal(np.asarray(read.dataobj) == names["Brain-stem"], labels == 3)
    assert np.array_equal(np.asarray(read.dataobj) == names["Left hippocampus"], labels == 1)
    assert np.allclose(read.affine, nib.load(path).affine, atol=1e-4)
    # A newer label replaces the one in the cache, a deleted one is forgotten.
    newer, changed = keep(file, [2], tmp_path)
    time.sleep(1.1)
    fresh.client.save_label(fresh.series, str(newer), params={"label_info": label_info(answer)})
    other._labels.forget_listing()
    (pair,) = other.datalist()
    assert np.array_equal(np.asarray(nib.load(pair["label"]).dataobj) == 1, changed == 2)
    fresh.forget_segs()
    other._labels.forget_listing()
    assert other.datalist() == []


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "without a name"),
        ({"label_info": [{"name": "Left hippocampus", "idx": 1}]}, "2, 3 without a name"),
        ({"label_info": [{"name": "Left hippocampus"}, {"name": "Brain-stem"}]}, "idx"),
        ({"label_info": "Left hippocampus"}, "list of"),
    ],
)
def test_a_label_without_names_is_refused(fresh: Any, params: dict[str, Any], message: str) -> None:
    file, _ = ask(fresh)
    with pytest.raises(MONAILabelClientException, match="Status: 400") as refused:
        fresh.client.save_label(fresh.series, str(file), params=params)
    assert message in str(refused.value)
    assert fresh.segs() == []


def test_a_label_on_another_grid_is_refused(fresh: Any, tmp_path: Path) -> None:
    file, answer = ask(fresh)
    image = nib.load(file)
    shifted = image.affine.copy()
    shifted[2, 3] += 5
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), shifted), tmp_path / "shifted.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), tmp_path / "empty.nii.gz")
    for name, message in (("shifted", "elsewhere in space"), ("empty", "empty")):
        with pytest.raises(MONAILabelClientException, match="Status: 400") as refused:
            fresh.client.save_label(
                fresh.series, str(tmp_path / f"{name}.nii.gz"), params={"label_info": label_info(answer)}
            )
        assert message in str(refused.value)
    assert fresh.segs() == []


def test_raw_bytes_of_a_viewer_are_a_label(fresh: Any, tmp_path: Path) -> None:
    file, answer = ask(fresh)
    labels = np.asarray(nib.load(file).dataobj).astype(np.uint8)
    raw = tmp_path / "label.bin"
    raw.write_bytes(labels.tobytes(order="F"))
    fresh.client.save_label(fresh.series, str(raw), params={"label_info": label_info(answer)})
    (seg,) = fresh.segs()
    assert [item.SegmentLabel for item in seg.SegmentSequence] == FOUND


def test_dicom_seg_without_saving(fresh: Any) -> None:
    form = {"params": json.dumps({**QUESTION, "label_info": [{"name": n, "idx": i} for i, n in enumerate(FOUND, 1)]})}
    url = f"{fresh.server.url}/infer/medal_s_mri?image={fresh.series}&output=dicom_seg"
    answer = requests.post(url, data=form, timeout=120)
    assert answer.status_code == 200, answer.text
    path = fresh.folder / "answer.dcm"
    path.write_bytes(answer.content)
    assert [item.SegmentLabel for item in pydicom.dcmread(path).SegmentSequence] == FOUND
    assert fresh.segs() == []


def test_archive_down_and_back(fresh: Any) -> None:
    file, answer = ask(fresh)
    fresh.archive.kill()
    try:
        # What is in the cache is served; what needs the archive says so in one line and changes nothing.
        ask(fresh)
        time.sleep(11)
        info = requests.get(f"{fresh.server.url}/info/", timeout=30).json()
        assert "does not answer" in info["datastore"]["error"]
        saved = requests.put(
            f"{fresh.server.url}/datastore/label?image={fresh.series}",
            data={"params": json.dumps({"label_info": label_info(answer)})},
            files={"label": file.open("rb")},
            timeout=60,
        )
        assert saved.status_code in (502, 503)
        assert "does not answer" in saved.json()["detail"]
        assert "Traceback" not in saved.text
        sample = requests.post(f"{fresh.server.url}/activelearning/first", json={}, timeout=60)
        assert sample.status_code in (502, 503), sample.text
    finally:
        fresh.archive.start()
    fresh.client.save_label(fresh.series, str(file), params={"label_info": label_info(answer)})
    assert len(fresh.segs()) == 1
    assert "error" not in requests.get(f"{fresh.server.url}/info/", timeout=30).json()["datastore"]
