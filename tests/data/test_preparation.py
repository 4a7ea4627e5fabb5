"""``prepare``: geometry and labels survive, what is done stays done, what is bad is named, damage is mended."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from scripts.cli import app
from scripts.data.blosc2_cache import IMAGE_FILE, LABEL_FILE, read_facts, read_patch, verify_case
from scripts.data.case_list import prepared_cases
from scripts.data.case_sources import SourceDefaults, find_cases
from scripts.data.case_targets import TargetReader
from scripts.data.preparation import PrepareSettings
from scripts.data.preparation_run import prepare_all

NATIVE = ("--rule", "fixed", "--spacing", "1", "1", "2", "--patch", "8", "8", "8", "--workers", "1")
TURNED = {
    "RAS": np.diag([1.0, 1, 2, 1]),
    "LPS": np.array([[-1.0, 0, 0, 40], [0, -1, 0, 50], [0, 0, 2, -7], [0, 0, 0, 1]]),
    "coronal": np.array([[0, 0, 1.0, 3], [-1, 0, 0, 60], [0, 2, 0, -5], [0, 0, 0, 1]]),
}


def prepare(*arguments: object, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["prepare", *map(str, arguments), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def write_npz(path: Path, gts: np.ndarray, prompts: dict | None = None, **changes: Any) -> Path:
    """A file of the challenge; the image has the labels' shape and noise wherever z > 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(0).integers(1, 256, gts.shape, dtype=np.uint8)
    image[0] = 0
    arrays: dict[str, Any] = {"imgs": image, "gts": gts, "spacing": np.array([1.0, 1.0, 2.0]), **changes}
    if prompts is not None:
        arrays["text_prompts"] = np.array(prompts, dtype=object)
    np.savez_compressed(path, **arrays)
    return path


def labels_like(shape: tuple[int, int, int], *values: int) -> np.ndarray:
    """A row of boxes, 3 voxels wide, along the second axis."""
    labels = np.zeros(shape, dtype=np.uint16)
    for place, value in enumerate(values):
        labels[2:5, 2 + 4 * place : 5 + 4 * place, 3:6] = value
    return labels


def write_pair(folder: Path, affine: np.ndarray, label: np.ndarray, name: str = "a", dtype: Any = np.int16) -> None:
    rng = np.random.default_rng(1)
    image = np.zeros(label.shape, dtype=np.int16)
    image[1:-1, 2:-1, 1:-2] = rng.integers(-150, 230, tuple(n - m for n, m in zip(label.shape, (2, 3, 3), strict=True)))
    for kind, array in (("images", image), ("labels", label.astype(dtype))):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), folder / kind / f"{name}.nii.gz")


def pairs(folder: Path, table: dict | None = None) -> Path:
    """One case with a liver (1) and a spleen (4)."""
    write_pair(folder, TURNED["RAS"], labels_like((10, 14, 12), 1, 4))
    (folder / "labels.json").write_text(json.dumps(table or {"Liver": 1, "Spleen": 4}))
    return folder


def stored(folder: Path) -> tuple[np.ndarray, np.ndarray, dict]:
    facts = read_facts(folder)
    image, label = (read_patch(folder, name, (0, 0, 0), facts["shape"]) for name in (IMAGE_FILE, LABEL_FILE))
    return image, label, facts


def in_world(labels: np.ndarray, affine: np.ndarray) -> dict[tuple[float, ...], int]:
    """Position in mm -> label, of all labelled voxels."""
    places = np.argwhere(labels)
    world = np.c_[places, np.ones(len(places))] @ np.asarray(affine).T
    keys = map(tuple, np.round(world[:, :3], 3).tolist())
    return dict(zip(keys, labels[tuple(places.T)].tolist(), strict=True))


@pytest.mark.parametrize("name", TURNED)
def test_every_labelled_voxel_stays_where_it_is_in_the_world(tmp_path: Path, name: str):
    source, label = tmp_path / "CT_Own", labels_like((13, 17, 11), 1, 4, 300)
    label[0, 0, 0] = 4  # outside of what is not zero in the image
    write_pair(source, TURNED[name], label)
    (source / "labels.json").write_text('{"Liver": 1, "Spleen": 4, "Stomach": 300}')
    prepare(source, "-o", tmp_path / "out", *NATIVE)
    image, found, facts = stored(tmp_path / "out" / "CT_Own" / "a")
    assert in_world(found, facts["affine"]) == in_world(label, TURNED[name])
    assert found.dtype == np.uint16
    assert image.dtype == np.uint8
    assert nib.aff2axcodes(np.array(facts["affine"])) == ("R", "A", "S")
    assert facts["spacing"] == [1, 1, 2]
    assert {int(v): n for v, n in facts["voxels"].items()} == {v: int((label == v).sum()) for v in (1, 4, 300)}


def test_what_is_cropped_is_zero_everywhere(tmp_path: Path):
    gts = np.zeros((9, 8, 7), dtype=np.uint8)
    gts[4:6, 2:4, 3:5] = 1
    image = np.zeros_like(gts)
    image[3:7, 1:6, 2:6] = 200
    write_npz(tmp_path / "CT_Own" / "a.npz", gts, {"1": "liver"}, imgs=image)
    prepare(tmp_path, "-o", tmp_path / "out", *NATIVE)
    found, label, facts = stored(tmp_path / "out" / "CT_Own" / "a")
    assert facts["shape"] == [4, 5, 4]  # x, y, z
    assert (found == 200).all()
    assert label.sum() == gts.sum()


def test_the_grey_values_are_those_of_inference(tmp_path: Path):
    source = pairs(tmp_path / "CT_Own")
    prepare(source, "-o", tmp_path / "out", *NATIVE)
    image, _, facts = stored(tmp_path / "out" / "CT_Own" / "a")
    hounsfield = np.asarray(nib.load(source / "images" / "a.nii.gz").dataobj, dtype=float)
    start, stop = facts["crop"]
    part = hounsfield[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    assert facts["window"] == "soft_tissue"
    np.testing.assert_allclose(image, np.clip((part + 160) / 400, 0, 1) * 255, atol=0.51)


def test_stored_intensity_keeps_hounsfield_units(tmp_path: Path):
    source = pairs(tmp_path / "CT_Own")
    prepare(source, "-o", tmp_path / "out", *NATIVE, "--intensity", "stored")
    image, _, _ = stored(tmp_path / "out" / "CT_Own" / "a")
    assert image.dtype == np.float16
    original = np.asarray(nib.load(source / "images" / "a.nii.gz").dataobj)
    assert sorted(image[image != 0].tolist()) == sorted(original[original != 0].tolist())


def test_resampling_keeps_extent_and_place(tmp_path: Path):
    source = pairs(tmp_path / "CT_Own")
    prepare(source, "-o", tmp_path / "out", *NATIVE[:2], "--spacing", "0.5", "0.5", "0.5", *NATIVE[6:])
    _, label, facts = stored(tmp_path / "out" / "CT_Own" / "a")
    before = labels_like((10, 14, 12), 1, 4)
    assert facts["spacing"] == pytest.approx([0.5, 0.5, 0.5])
    for value in (1, 4):
        volumes = (label == value).sum() * 0.125, (before == value).sum() * 2.0
        assert volumes[0] == pytest.approx(volumes[1])
        centres = [
            np.asarray(affine)[:3] @ [*np.argwhere(array == value).mean(axis=0), 1]
            for array, affine in ((label, facts["affine"]), (before, TURNED["RAS"]))
        ]
        np.testing.assert_allclose(*centres, atol=1e-6)


def test_the_training_rule_decides_the_grid(tmp_path: Path):
    """A target that fills the volume is seen in one patch; with a small one the same volume is kept finer."""
    for name, size in (("large", 38), ("small", 4)):
        label = np.zeros((40, 40, 40), dtype=np.uint8)
        label[1 : 1 + size, 1 : 1 + size, 1 : 1 + size] = 1
        write_npz(tmp_path / "npz" / "CT_Own" / f"{name}.npz", label, {"1": "liver"}, spacing=np.ones(3))
    prepare(tmp_path / "npz", "-o", tmp_path / "out", "--patch", 20, 20, 20, "--workers", 1)
    shapes = {case["name"]: case["shape"] for case in prepared_cases(tmp_path / "out")}
    assert shapes["large"][0] == 20
    assert shapes["small"] == [38, 38, 38]  # 1.9 patches, the longest the rule allows


def test_labels_that_cannot_be_asked_for_are_dropped_and_those_of_one_target_merged(tmp_path: Path):
    source = pairs(tmp_path / "CT_Own", {"Liver": [4, 7], "background": 0})
    write_pair(source, TURNED["RAS"], labels_like((10, 14, 12), 1, 4, 7))
    prepare(source, "-o", tmp_path / "out", *NATIVE)
    _, label, facts = stored(tmp_path / "out" / "CT_Own" / "a")
    assert set(np.unique(label)) == {0, 4}
    assert facts["voxels"] == {"4": 54}
    assert facts["names"] == {"4": "Liver"}
    assert facts["sentences"]["4"][0] == "liver"
    assert len(facts["sentences"]["4"]) > 1


def test_instances_keep_their_numbers_and_are_one_class(tmp_path: Path):
    gts = labels_like((8, 20, 9), 3, 900, 7)
    write_npz(tmp_path / "CT_Lesions" / "a.npz", gts, {"1": "Liver tumor in CT", "instance_label": 1})
    prepare(tmp_path, "-o", tmp_path / "out", *NATIVE)
    _, label, facts = stored(tmp_path / "out" / "CT_Lesions" / "a")
    assert set(np.unique(label)) == {0, 3, 7, 900}
    assert facts["instances"]
    assert facts["voxels"] == {"1": 81}


def test_sentences_come_from_the_prompts_json_the_canonical_one_first(tmp_path: Path):
    for name in ("CT_AMOS_1", "CT_AMOS_2"):
        write_npz(tmp_path / "npz" / f"{name}.npz", labels_like((8, 9, 9), 1))
    (tmp_path / "prompts.json").write_text(
        json.dumps({"CT_AMOS": {"1": ["Spleen in abdominal CT", "The spleen"], "instance_label": 0}})
    )
    prepare(tmp_path / "npz", "-o", tmp_path / "out", *NATIVE, "--prompts-json", tmp_path / "prompts.json")
    cases = prepared_cases(tmp_path / "out")
    assert [case["dataset"] for case in cases] == ["CT_AMOS"] * 2
    assert cases[0]["sentences"] == {1: ["spleen", "spleen in abdominal ct", "the spleen"]}
    assert cases[0]["sentences"] is cases[1]["sentences"]


def test_done_cases_stay_and_changed_ones_are_made_again(tmp_path: Path):
    source, out = pairs(tmp_path / "CT_Own"), tmp_path / "out"
    write_pair(source, TURNED["RAS"], labels_like((10, 14, 12), 1), name="b")
    counts = []
    first = prepare(source, "-o", out, *NATIVE)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.parent != out}
    counts.append((first["made"], first["kept"]))
    again = prepare(source, "-o", out, *NATIVE)
    counts.append((again["made"], again["kept"]))
    assert times == {path: path.stat().st_mtime_ns for path in times}
    write_pair(source, TURNED["RAS"], labels_like((10, 14, 12), 4), name="b")
    third = prepare(source, "-o", out, *NATIVE)
    counts.append((third["made"], third["kept"]))
    fourth = prepare(source, "-o", out, *NATIVE, "--antialias")
    counts.append((fourth["made"], fourth["kept"]))
    assert counts == [(2, 0), (0, 2), (1, 1), (2, 0)]


def test_new_sentences_rewrite_the_facts_alone(tmp_path: Path):
    source, out = tmp_path / "npz", tmp_path / "out"
    write_npz(source / "CT_AMOS_1.npz", labels_like((8, 9, 9), 1))
    for sentence in ("the spleen", "a spleen"):
        (tmp_path / "prompts.json").write_text(json.dumps({"CT_AMOS": {"1": [sentence], "instance_label": 0}}))
        outcome = prepare(source, "-o", out, *NATIVE, "--prompts-json", tmp_path / "prompts.json")
        assert prepared_cases(out)[0]["sentences"] == {1: ["spleen", sentence]}
        verify_case(out / "CT_AMOS" / "CT_AMOS_1")
    assert (outcome["made"], outcome["kept"]) == (0, 1)


def test_bad_cases_are_named_and_the_others_are_made(tmp_path: Path):
    source, out = pairs(tmp_path / "CT_Own"), tmp_path / "out"
    shape = (10, 14, 12)
    write_pair(source, TURNED["RAS"], labels_like(shape, 1) * 0.5, name="fractions", dtype=np.float32)
    write_pair(source, TURNED["RAS"], labels_like(shape, 1), name="shape")
    write_pair(source, TURNED["LPS"], labels_like(shape, 1), name="place")
    write_pair(source, TURNED["RAS"], labels_like(shape, 1), name="damaged")
    for name, affine, cut in (("shape", "RAS", -1), ("place", "RAS", None)):
        image = nib.Nifti1Image(labels_like(shape, 1)[:cut].astype(np.uint8), TURNED[affine])
        nib.save(image, source / "labels" / f"{name}.nii.gz")
    damaged = source / "images" / "damaged.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    outcome = prepare(source, "-o", out, *NATIVE, code=1)
    assert outcome["made"] == 1
    reasons = {key.removeprefix("CT_Own/"): text for key, text in outcome["bad"].items()}
    assert set(reasons) == {"fractions", "shape", "place", "damaged"}
    assert "wanted whole numbers" in reasons["fractions"]
    assert "(9, 14, 12) voxels, the image has (10, 14, 12)" in reasons["shape"]
    assert "voxels apart from its image" in reasons["place"]
    assert "damaged" in reasons["damaged"]
    assert [case["name"] for case in prepared_cases(out)] == ["a"]


def test_people_read_one_line_per_bad_case(tmp_path: Path):
    write_npz(tmp_path / "CT_Own" / "good.npz", labels_like((8, 9, 9), 1), {"1": "liver"})
    write_npz(tmp_path / "CT_Own" / "silent.npz", labels_like((8, 9, 9), 1))
    result = CliRunner().invoke(app, ["prepare", str(tmp_path), "-o", str(tmp_path / "out"), *NATIVE])
    assert result.exit_code == 1
    assert "1 prepared, 0 there already, 1 bad" in result.output
    assert "CT_Own/silent: silent.npz: no text_prompts in it" in result.output
    assert "Traceback" not in result.output


def test_damage_is_reported_and_mended(tmp_path: Path):
    source, out = pairs(tmp_path / "CT_Own"), tmp_path / "out"
    prepare(source, "-o", out, *NATIVE)
    assert prepare("-o", out, "--verify") == {"folder": str(out), "made": 0, "kept": 1, "bad": {}}
    file = out / "CT_Own" / "a" / IMAGE_FILE
    content = bytearray(file.read_bytes())
    content[-20] ^= 255
    file.write_bytes(content)
    assert "image.b2nd" in prepare("-o", out, "--verify", code=1)["bad"]["CT_Own/a"]
    assert prepare(source, "-o", out, *NATIVE, "--verify")["made"] == 1
    assert prepare("-o", out, "--verify")["bad"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "-o", "out"), "no such folder or list"),
        (("CT_Own",), "no folder for the training set"),
        (("-o", "out"), "no SOURCE"),
        (("CT_Own", "-o", "out", "--rule", "none"), "rule 'none' arrived; give training or fixed"),
        (("CT_Own", "-o", "out", "--labels", "odd.json"), "2 names are no CT target: Livver, Nose bone"),
        (("images", "-o", "out"), "no case in images"),
        (("out.jsonl", "-o", "out"), "out.jsonl, line 2: unknown imag"),
        (("-o", "empty", "--verify"), "no prepared cases"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments, message):
    pairs(tmp_path / "CT_Own")
    (tmp_path / "images").mkdir()
    (tmp_path / "odd.json").write_text('{"Livver": 1, "Spleen": 4, "Nose bone": 5}')
    (tmp_path / "out.jsonl").write_text('\n{"imag": "a.npz"}\n')
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["prepare", *arguments])
    assert result.exit_code == 1
    assert result.output.startswith("error: prepare: ")
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_lists_name_cases_their_dataset_and_their_part(tmp_path: Path):
    pairs(tmp_path / "own")
    write_npz(tmp_path / "x.npz", labels_like((8, 9, 9), 1))
    pair = {"image": "own/images/a.nii.gz", "label": "own/labels/a.nii.gz"}
    (tmp_path / "cases.json").write_text(
        json.dumps(
            {"labels": {"1": "liver"}, "dataset": "CT_One", "training": [pair], "validation": [{**pair, "name": "v"}]}
        )
    )
    rows = [
        {**pair, "dataset": "Two", "modality": "MR"},
        {"data": "x.npz", "dataset": "US_Three", "labels": {"Thyroid": 1}},
    ]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = TargetReader()
    first = find_cases(tmp_path / "cases.json", reader)
    assert [(case.key, case.section) for case in first] == [("CT_One/a", "training"), ("CT_One/v", "validation")]
    second = find_cases(tmp_path / "cases.jsonl", reader, SourceDefaults(labels={"liver": 1}))
    assert [(case.key, case.modality) for case in second] == [("Two/a", "MR"), ("US_Three/x", None)]
    (tmp_path / "cases.jsonl").write_text(f"{json.dumps(rows[0])}\n" * 2)
    with pytest.raises(ValueError, match="would both be stored as Two/a"):
        find_cases(tmp_path / "cases.jsonl", reader)


def test_validation_cases_are_listed_apart(tmp_path: Path):
    source = pairs(tmp_path / "CT_Own")
    pair = {"image": "images/a.nii.gz", "label": "labels/a.nii.gz"}
    content = {"labels": {"Liver": 1}, "training": [pair], "validation": [{**pair, "name": "v"}]}
    (source / "cases.json").write_text(json.dumps(content))
    prepare(source / "cases.json", "-o", tmp_path / "out", *NATIVE, "--dataset", "CT_Own")
    assert [case["name"] for case in prepared_cases(tmp_path / "out")] == ["a"]
    assert [case["name"] for case in prepared_cases(tmp_path / "out", "validation")] == ["v"]
    with pytest.raises(ValueError, match="none of the 2 cases"):
        prepared_cases(tmp_path / "out", datasets=["CT_Other"])
    with pytest.raises(ValueError, match="run prepare"):
        prepared_cases(tmp_path / "nowhere")


@pytest.mark.slow
def test_processes_that_are_killed_cost_nothing_and_the_result_is_that_of_one_process(tmp_path: Path):
    for number in range(4):
        gts = labels_like((9, 12, 9), 1)[:, : 8 + number]
        write_npz(tmp_path / "npz" / "CT_Own" / f"{number}.npz", gts, {"1": "liver"})
    cases = find_cases(tmp_path / "npz", TargetReader())
    settings = PrepareSettings(patch_size=(8, 8, 8), rule="fixed", locations=20)

    def kill_once(_: object) -> None:
        if not killed:
            killed.extend(multiprocessing.active_children())
            for process in killed:
                process.kill()

    killed: list[Any] = []
    outcomes = prepare_all(cases, tmp_path / "many", settings, workers=2, on_done=kill_once)
    assert len(killed) == 2
    assert [(outcome.key, outcome.error) for outcome in outcomes] == [(f"CT_Own/{n}", None) for n in range(4)]
    prepare_all(cases, tmp_path / "one", settings, workers=1)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) == 4 * 4 + 2
    for file in files:
        assert (tmp_path / "many" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()


def test_the_challenge_file_and_the_torso_can_be_prepared(tmp_path: Path, shared: Path):
    table = tmp_path / "names.json"
    table.write_text('{"Liver": 1}')
    outcome = prepare(
        *(shared / "data" / "ct_lesion_npz", "-o", tmp_path / "out", "--modality", "CT", "--labels", table, *NATIVE)
    )
    assert outcome["made"] == 2
    for case in prepared_cases(tmp_path / "out"):
        assert case["voxels"][1] > 0
