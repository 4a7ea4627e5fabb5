"""The inference config end to end: files, geometry, determinism, prompts, reuse, and the real command."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from PIL import Image
from scipy.spatial.transform import Rotation


def test_network_is_the_small_one(inference_config: Path) -> None:
    """The shipped weights' network stands in two configs: they must agree."""
    ours, small = (
        ConfigParser.load_config_file(inference_config.with_name(n)) for n in ("inference.json", "small_network.json")
    )
    for key in ("text_dim", "query_dim", "features", "strides"):
        assert ours[key] == small[key], key
    only_there, only_here = ("deep_supervision", "level_hidden", "_target_"), ("default", "_target_")
    parts = {k: v for k, v in small["network_def"].items() if k not in only_there}
    assert {k: v for k, v in ours["network_def"].items() if k not in only_here} == parts


def test_config_has_what_bundles_need(build: Callable, head: Path, tmp_path: Path) -> None:
    workflow = build(image=str(head), prompts="thalami", output_dir=str(tmp_path / "out"))
    assert not workflow.check_properties()


def test_files_of_a_run(build: Callable, head: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(
        image=str(head), prompts=["left thalamus", "brain-stem and thalami"], output_dir=str(out), save_masks="true"
    ).run()
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == [
        "head_masks/head_brain_stem.nii.gz",
        "head_masks/head_left_thalamus.nii.gz",
        "head_masks/head_right_thalamus.nii.gz",
        "head_preview.png",
        "head_seg.json",
        "head_seg.nii.gz",
    ]
    report = json.loads((out / "head_seg.json").read_text())
    assert [s["name"] for s in report["structures"]] == ["Left thalamus", "Brain-stem", "Right thalamus"]
    assert report["image"]["name"] == "head.nii.gz"
    assert str(tmp_path) not in json.dumps(report)
    source, labels = nib.load(head), nib.load(out / "head_seg.nii.gz")
    assert labels.get_data_dtype() in (np.uint8, np.uint16)
    for image in (labels, nib.load(out / "head_masks" / "head_brain_stem.nii.gz")):
        assert image.shape == source.shape
        assert np.array_equal(image.affine, source.affine)
        assert np.array_equal(image.get_qform(), source.get_qform())
        assert [int(image.header[c]) for c in ("qform_code", "sform_code")] == [1, 4]
        assert b"Patient" not in image.header.binaryblock
    values = np.asarray(labels.dataobj)
    for structure in report["structures"]:
        assert structure["voxels"] == (int((values == structure["label"]).sum()) or None)
    assert Image.open(out / "head_preview.png").size[0] > 600


def test_same_input_same_bytes(build: Callable, head: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        build(image=str(head), prompts="thalami", output_dir=str(tmp_path / name), save_masks=True).run()
    first = sorted(p for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(first) == 5
    for path in first:
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path.name


def box_in_patient(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A bright box left of the middle, in front and below; dim tissue elsewhere within a margin of air."""
    world = nib.affines.apply_affine(affine, np.stack(np.indices(shape), axis=-1))
    world -= nib.affines.apply_affine(affine, (np.array(shape) - 1) / 2)
    box = (np.abs(world - np.array([-11.0, 8, -9])) < (8, 9, 10)).all(axis=-1)
    return np.where(box, 1000.0, 200.0).astype(np.float32)


GRIDS = [
    *[(axes, (1, 1, 1), (2.0, 2.0, 2.0), 0) for axes in itertools.permutations(range(3))],
    *[(axes, (-1, 1, -1), (2.0, 2.0, 2.0), 0) for axes in itertools.permutations(range(3))],
    ((0, 1, 2), (-1, -1, 1), (1.2, 2.5, 3.5), 0),
    ((2, 0, 1), (1, -1, 1), (3.5, 1.5, 2.0), 25),
    ((1, 2, 0), (-1, -1, -1), (1.5, 3.0, 1.5), -40),
]  # fmt: skip


def test_what_is_found_lies_where_it_is(build: Callable, thresholder: type, no_weights: Path, tmp_path: Path) -> None:
    """The label map covers the bright voxels of the input in whatever grid it is stored; left stays left.

    One evaluator serves all requests, as a server would use it.
    """
    cases = []
    for number, (axes, signs, spacing, tilt) in enumerate(GRIDS):
        shape = tuple(round(60 / size) for size in spacing)
        affine = np.diag([0.0, 0, 0, 1])
        affine[list(axes), range(3)] = np.array(signs) * spacing
        affine[:3, :3] = (
            Rotation.from_rotvec(np.deg2rad(tilt) * np.array([0.6, 0.64, 0.48])).as_matrix() @ affine[:3, :3]
        )
        affine[:3, 3] = (30, -12, 90)
        path = tmp_path / f"case{number}.nii.gz"
        nib.save(nib.Nifti1Image(box_in_patient(affine, shape), affine), path)
        cases.append(path)
    out = tmp_path / "out"
    workflow = build(
        image=str(cases[0]),
        prompts="left hippocampus",
        output_dir=str(out),
        network_def=thresholder((1.5,)),
        weights=str(no_weights),
        spacing=[2.0, 2.0, 2.0],
        save_preview=False,
    )
    for path in cases:
        workflow.dataset_data[:] = [{"image": str(path), "text": "left hippocampus"}]
        workflow.run()
        image, labels = nib.load(path), nib.load(out / path.name.replace(".nii", "_seg.nii"))
        truth, found = np.asarray(image.dataobj) > 600, np.asarray(labels.dataobj) > 0
        assert 2 * (truth & found).sum() / (truth.sum() + found.sum()) > 0.87, path.name
        centres = [nib.affines.apply_affine(image.affine, np.argwhere(m)).mean(axis=0) for m in (truth, found)]
        assert np.linalg.norm(centres[0] - centres[1]) < 0.4 * max(image.header.get_zooms())
        middle = nib.affines.apply_affine(image.affine, (np.array(image.shape) - 1) / 2)
        assert centres[1][0] < middle[0] - 8
        structure = json.loads((out / path.name.replace(".nii.gz", "_seg.json")).read_text())["structures"][0]
        assert np.allclose(structure["centroid_mm"], centres[1], atol=0.02)


def test_structure_not_found_is_null(
    build: Callable, thresholder: type, head: Path, no_weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    build(
        image=str(head),
        prompts="thalami",
        output_dir=str(out),
        network_def=thresholder((1e3, 1e3)),
        weights=str(no_weights),
    ).run()
    assert not np.asarray(nib.load(out / "head_seg.nii.gz").dataobj).any()
    assert json.loads((out / "head_seg.json").read_text())["structures"][0]["volume_ml"] is None


@pytest.fixture
def prompt_masks(head: Path, tmp_path: Path) -> dict[str, object]:
    """One label map (values 5 and 6) and the same as two masks; block-sized so that resampling keeps them."""
    image = nib.load(head)
    labels = np.zeros(image.shape, np.int16)
    labels[3:9, 4:10, 3:9] = 5
    labels[11:17, 8:14, 10:18] = 6
    nib.save(nib.Nifti1Image(labels, image.affine), tmp_path / "mask.nii.gz")
    for value in (5, 6):
        nib.save(nib.Nifti1Image((labels == value).astype(np.uint8), image.affine), tmp_path / f"mask{value}.nii.gz")
    table = tmp_path / "names.json"
    table.write_text(json.dumps({"5": "left thalamus", "6": "right thalamus"}))
    return {
        "labels": labels,
        "table file": {"prompt_mask": str(tmp_path / "mask.nii.gz"), "prompt_mask_names": str(table)},
        "table": {
            "prompt_mask": str(tmp_path / "mask.nii.gz"),
            "prompt_mask_names": {5: "left thalamus", 6: "right thalamus"},
        },
        "list": {"prompt_mask": [str(tmp_path / "mask5.nii.gz"), str(tmp_path / "mask6.nii.gz")]},
    }


@pytest.mark.parametrize("how", ["table file", "table", "list"])
def test_masks_start_the_segmentation(
    build: Callable, repeater: type, head: Path, no_weights: Path, tmp_path: Path, prompt_masks: dict, how: str
) -> None:
    """A network that repeats its prompts returns the user's masks, on the right voxels and under the right names."""
    out = tmp_path / "out"
    build(
        image=str(head),
        prompts="thalami",
        output_dir=str(out),
        network_def=repeater(),
        weights=str(no_weights),
        refinements=0,
        spacing=[5.0, 5.0, 5.0],
        save_preview=False,
        **prompt_masks[how],
    ).run()
    report = json.loads((out / "head_seg.json").read_text())
    found = np.asarray(nib.load(out / "head_seg.nii.gz").dataobj)
    for structure, value in zip(report["structures"], (5, 6), strict=True):
        truth, ours = prompt_masks["labels"] == value, found == structure["label"]
        assert 2 * (truth & ours).sum() / (truth.sum() + ours.sum()) > 0.8, structure["name"]


def test_an_earlier_answer_can_be_the_prompt(
    build: Callable, thresholder: type, repeater: type, head: Path, no_weights: Path, tmp_path: Path
) -> None:
    """A label map with the targets' own values needs no table of names."""
    out = tmp_path / "out"
    common = {"image": str(head), "prompts": "thalami", "save_preview": False, "weights": str(no_weights)}
    build(**common, output_dir=str(out), network_def=thresholder((0.2, 0.1))).run()
    again = tmp_path / "again"
    build(
        **common, output_dir=str(again), network_def=repeater(), refinements=0, prompt_mask=str(out / "head_seg.nii.gz")
    ).run()
    first, second = (np.asarray(nib.load(folder / "head_seg.nii.gz").dataobj) for folder in (out, again))
    assert set(np.unique(second)) == set(np.unique(first))
    assert (first == second).mean() > 0.75


def test_non_finite_voxels_are_filled_when_asked(build: Callable, head: Path, tmp_path: Path) -> None:
    image = nib.load(head)
    voxels = np.array(image.dataobj)
    voxels[0, 0, :3] = np.nan
    nib.save(nib.Nifti1Image(voxels, image.affine), head)
    out = tmp_path / "out"
    build(image=str(head), prompts="thalami", output_dir=str(out), fill_non_finite=True).run()
    assert json.loads((out / "head_seg.json").read_text())["image"]["filled_voxels"] == 3


def command(bundle_dir: Path, **keys: object) -> subprocess.CompletedProcess:
    """The documented command line, in the bundle's root."""
    options = [part for key, value in keys.items() for part in (f"--{key}", str(value))]
    return subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json", *options],
        cwd=bundle_dir,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_command(bundle_dir: Path, quick: dict, random_weights: Path, head: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    done = command(
        bundle_dir,
        image=head,
        prompts="['brain-stem', 'left thalamus']",
        output_dir=out,
        weights=random_weights,
        spacing=quick["spacing"],
        roi_size=quick["roi_size"],
        stages=quick["stages"],
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["head_preview.png", "head_seg.json", "head_seg.nii.gz"]
    for said in ("Brain-stem", "volume ml", "head_preview.png", "window"):
        assert said in done.stderr


def test_the_command_refuses_in_one_line(bundle_dir: Path, random_weights: Path, head: Path, tmp_path: Path) -> None:
    """Exit code not 0, one line that says what is wrong, no traceback, no file."""
    out = tmp_path / "out"
    truncated = tmp_path / "cut.nii.gz"
    truncated.write_bytes(head.read_bytes()[:5000])
    done = command(bundle_dir, image=truncated, prompts="thalami", output_dir=out, weights=random_weights)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "cut.nii.gz: truncated" in lines[0]
    assert "Traceback" not in done.stderr + done.stdout
    assert "terminating" not in done.stderr
    assert not [path for path in out.rglob("*") if path.is_file()]
