"""Label maps of any tool through the ``evaluate`` command: names, files, grids, bad cases, sharing among processes."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch.distributed as dist
from typer.testing import CliRunner, Result

from scripts.batch import WorkQueue
from scripts.cli import app
from scripts.errors import InputError
from scripts.evaluation import EvaluationRunner, match_predictions, read_references

SHAPE = (10, 9, 8)
AFFINE = np.diag([-1.5, -1.5, 3, 1])


def labels(seed: int) -> np.ndarray:
    """A liver (1) and a spleen (2), a little different for each seed."""
    volume = np.zeros(SHAPE, np.uint8)
    volume[1:5, 1:7, 1 + seed % 2 : 7] = 1
    volume[6:9, 2:7, 2:7] = 2
    return volume


def save(path: Path, volume: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(volume, affine), path)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Three cases: the first found exactly, the second without its spleen, the third shifted by a voxel."""
    for number in range(3):
        truth = labels(number)
        save(tmp_path / "truth" / f"case_{number}_gt.nii.gz", truth)
        found = {0: truth, 1: np.where(truth == 2, 0, truth), 2: np.roll(truth, 1, axis=0)}[number]
        save(tmp_path / "pred" / f"case_{number}.nii.gz", found.astype(np.uint8))
    (tmp_path / "names.json").write_text(json.dumps({"1": "liver", "2": "Spleen"}))
    return tmp_path


def evaluate(folder: Path, *options: str, pred: str = "pred", truth: str = "truth") -> Result:
    arguments = ["--predictions", folder / pred, "--truth", folder / truth, "-o", folder / "scores", *options]
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def named(folder: Path) -> tuple[str, ...]:
    return ("--names", str(folder / "names.json"), "--modality", "CT")


def test_tables_summary_and_plot(folders: Path) -> None:
    result = evaluate(folders, *named(folders), "--json")
    assert result.exit_code == 0, result.output
    rows = {(row["case"], row["structure"]): row for row in rows_of(folders / "scores" / "scores.csv")}
    assert len(rows) == 6
    exact = rows["case_0_gt", "Liver"]
    assert (exact["dsc"], exact["nsd"], exact["f1"], exact["modality"]) == ("1.0", "1.0", "", "CT")
    assert (rows["case_1_gt", "Spleen"]["dsc"], rows["case_1_gt", "Spleen"]["predicted_voxels"]) == ("0.0", "0")
    shifted = rows["case_2_gt", "Liver"]  # 4 voxels long, moved by 1.5 mm: within the tolerance of 2 mm
    assert float(shifted["dsc"]) == pytest.approx(0.75)
    assert float(shifted["nsd"]) == 1
    summary = json.loads((folders / "scores" / "summary.json").read_text())
    dsc = [float(row["dsc"]) for row in rows.values()]
    assert summary["scores"]["CT"]["mean of cases"]["dsc"]["mean"] == pytest.approx(np.mean(dsc), abs=1e-6)
    assert summary["scores"]["CT"]["structures"]["Spleen"]["dsc"]["low"] == 0
    assert (summary["cases"], summary["not_scored"]) == (3, {})
    assert (folders / "scores" / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(result.stdout)["summary"][0]["over"] == "mean of cases"


def test_a_bad_case_is_listed_and_stops_nothing(folders: Path) -> None:
    (folders / "pred" / "case_0.nii.gz").unlink()
    save(folders / "pred" / "case_1.nii.gz", labels(1), np.diag([1.5, -1.5, 3, 1]))
    result = evaluate(folders, *named(folders))
    assert result.exit_code == 1
    reasons = {row["case"]: row["reason"] for row in rows_of(folders / "scores" / "not_scored.csv")}
    assert reasons["case_0_gt"] == "no prediction for case_0_gt in pred"
    assert "voxels apart from the truth" in reasons["case_1_gt"]
    assert {row["case"] for row in rows_of(folders / "scores" / "scores.csv")} == {"case_2_gt"}
    assert "2 cases were not scored" in " ".join(result.output.split())


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "shape": (lambda p: save(p, np.zeros((3, 3, 3), np.uint8)), r"\(3, 3, 3\) voxels, the truth has \(10, 9, 8\)"),
    "fractions": (lambda p: save(p, np.full(SHAPE, 0.5, np.float32)), "wanted a label map of whole numbers"),
    "negative": (lambda p: save(p, np.full(SHAPE, -1, np.int16)), "values from -1"),
    "damaged": (lambda p: p.write_bytes(p.read_bytes()[:60]), "case_0.nii.gz: .*(damaged|not an image)"),
    "two": (lambda p: save(p.with_name("case_0.nii"), labels(0)), "several predictions for case_0_gt"),
}


@pytest.mark.parametrize("kind", BAD)
def test_why_a_case_is_not_scored(kind: str, folders: Path) -> None:
    spoil, message = BAD[kind]
    spoil(folders / "pred" / "case_0.nii.gz")
    runner = EvaluationRunner(read_references(folders / "truth"), folders / "pred", folders / "scores")
    evaluation = runner.run()
    assert evaluation is not None
    assert list(evaluation.failed) == ["case_0_gt"]
    assert re.search(message, evaluation.failed["case_0_gt"])


def test_names_decide_not_values(folders: Path) -> None:
    """Another tool: other values, other words, one structure that it does not know and one too many."""
    for number in range(3):
        volume = np.where(labels(number) == 1, 40, 7).astype(np.uint8)
        save(folders / "theirs" / f"case_{number}_seg.nii.gz", volume)
    (folders / "theirs.json").write_text(json.dumps({"hepar": 40, "my own thing": 9, "Pancreas": 7}))
    result = evaluate(folders, *named(folders), "--prediction-names", str(folders / "theirs.json"), pred="theirs")
    assert result.exit_code == 0, result.output
    rows = rows_of(folders / "scores" / "scores.csv")
    assert {(row["structure"], row["dsc"]) for row in rows} == {("Liver", "1.0")}


def test_without_names_values_are_structures(folders: Path) -> None:
    assert evaluate(folders).exit_code == 0
    rows = rows_of(folders / "scores" / "scores.csv")
    assert {row["structure"] for row in rows} == {"label 1", "label 2"}


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no modality": (("--names", "names.json"), "error: evaluate: label names mean something in a modality only"),
    "unknown name": (("--names", "odd.json", "--modality", "CT"), "1 names are no CT target: flux capacitor"),
    "no folder": (("--predictions", "absent"), "error: evaluate: no folder of predictions absent"),
    "no truth": (("--truth", "absent"), "error: prepare: no such folder or list: absent"),
    "nothing fits": (("--predictions", "truth", "--truth", "lone"), "error: evaluate: none of 1 cases could be scored"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_one_clear_line(kind: str, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders)
    Path("odd.json").write_text('{"1": "flux capacitor"}')
    save(folders / "lone" / "somebody.nii.gz", labels(0))
    options, message = REFUSED[kind]
    result = evaluate(Path(), *options)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_challenge_file_is_scored_as_by_its_own_program(shared: Path, tmp_path: Path) -> None:
    """Golden arrays as files: ``gts`` and ``segs`` (D, H, W), spacing in the order listed, instances by the flag."""
    golden = json.loads((shared / "golden" / "metrics.json").read_text())
    with np.load(shared / "golden" / "metrics.npz") as arrays:
        for case in golden:
            name, gts = f"case{case['case']}", arrays[f"case{case['case']}_gt"]
            prompts: dict[str, Any] = {str(label): f"liver segment {label}" for label in case.get("class_ids") or [1]}
            prompts["instance_label"] = case["instance_label"]
            if case["instance_label"]:
                prompts = {"1": "liver tumor", "instance_label": 1}
            (tmp_path / "truth").mkdir(exist_ok=True)
            (tmp_path / "pred").mkdir(exist_ok=True)
            truth = {"imgs": np.zeros_like(gts), "gts": gts, "spacing": case["spacing"], "text_prompts": prompts}
            np.savez(tmp_path / "truth" / f"CT_{name}.npz", **truth)
            np.savez(tmp_path / "pred" / f"CT_{name}.npz", segs=arrays[f"{name}_seg"])
    result = evaluate(tmp_path, "--modality", "CT")
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path / "scores" / "scores.csv")
    for case in golden:
        own = [row for row in rows if row["case"] == f"CT_case{case['case']}"]
        for key, score in (("DSC", "dsc"), ("NSD", "nsd"), ("F1", "f1"), ("DSC_TP", "dsc_tp")):
            found = [float(row[score]) for row in own if row[score]]
            expected = case["expected"].get(key)
            if expected is not None:
                assert np.mean(found) == pytest.approx(expected, abs=1e-6), case["description"]


def test_processes_share_the_cases_and_find_the_same(folders: Path) -> None:
    """Two workers on one queue: each case once, the first one writes, and the tables are those of one alone."""
    references = read_references(folders / "truth", {"1": "liver", "2": "Spleen"}, "CT")
    EvaluationRunner(references, folders / "pred", folders / "alone").run()
    seen: list[str] = []
    store, found = dist.HashStore(), {}

    def work(rank: int) -> None:
        runner = EvaluationRunner(
            references, folders / "pred", folders / "both", advance=lambda name, _: seen.append(name)
        )
        found[rank] = runner.run(WorkQueue(store, rank, 2))

    threads = [Thread(target=work, args=(rank,)) for rank in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(seen) == ["case_0_gt", "case_1_gt", "case_2_gt"]
    assert found[1] is None
    for name in ("scores.csv", "summary.csv", "summary.json"):
        assert (folders / "both" / name).read_bytes() == (folders / "alone" / name).read_bytes()


def test_matching_prefers_the_own_name_and_takes_instances_where_they_count(tmp_path: Path) -> None:
    for name in ("a", "a_seg", "a_instances", "b_seg", "b_disagreement"):
        save(tmp_path / "pred" / f"{name}.nii.gz", labels(0))
    for name in ("a", "b"):
        save(tmp_path / "truth" / f"{name}.nii.gz", labels(0))
    found = {}
    for instances in (None, True):
        pairs = match_predictions(read_references(tmp_path / "truth", instances=instances), tmp_path / "pred")
        found[instances] = [pair.prediction.name for pair in pairs if pair.prediction]
    assert found == {None: ["a.nii.gz", "b_seg.nii.gz"], True: ["a_instances.nii.gz", "b_seg.nii.gz"]}
    with pytest.raises(InputError, match="names of the predictions are a table or 'ids'"):
        match_predictions([], tmp_path / "pred", "else")
