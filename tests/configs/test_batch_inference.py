"""Many cases through the real configs: one evaluator, bad cases between good ones, two processes, a killed one."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.errors import find_user_error

AFFINE = np.diag([5.0, 5, 6, 1])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three sound volumes and one that ends too early, which comes second."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        voxels = rng.normal(500, 100, (20, 18 + number, 22)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, AFFINE), folder / f"head{number}.nii.gz")
    truncated = folder / "head1.nii.gz"
    truncated.write_bytes(truncated.read_bytes()[:5000])
    return folder


@pytest.fixture
def options(quick: dict[str, Any], random_weights: Path, bundle_dir: Path) -> dict[str, Any]:
    """Overrides of every run here."""
    return {**quick, "bundle_root": str(bundle_dir), "weights": str(random_weights), "prompts": "thalami"}


@pytest.fixture
def batch(inference_config: Path, options: dict[str, Any]) -> Callable[..., ConfigWorkflow]:
    """Make and initialise a batch: ``batch(images=..., output_dir=...)``."""

    def make(**override: Any) -> ConfigWorkflow:
        files = [str(inference_config), str(inference_config.with_name("batch_inference.json"))]
        keys = {**options, **{key: str(value) if isinstance(value, Path) else value for key, value in override.items()}}
        workflow = ConfigWorkflow(config_file=files, workflow_type="infer", logging_file=False, **keys)
        workflow.initialize()
        return workflow

    return make


def failure(run: Callable[[], object]) -> str:
    with pytest.raises(Exception, match=r".*") as caught:
        run()
    ours = find_user_error(caught.value)
    assert ours is not None, repr(caught.value)
    return str(ours)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_overlay_changes_few_keys(inference_config: Path) -> None:
    """Everything that stands for the image, the network and the masks is the inference config's own."""
    overlay = ConfigParser.load_config_file(inference_config.with_name("batch_inference.json"))
    assert set(overlay) == {
        *("_comment", "+imports", "images", "overwrite", "summary", "device", "cases", "evaluator::epoch_length"),
        *("batch", "initialize", "run"),
    }


# Keys of the inference config that cannot change an answer, that the case holds itself, or that the weights imply.
NO_SETTINGS = {
    *("_comment", "imports", "bundle_root", "dataset_dir", "output_dir", "progress", "device"),
    *("image", "prompts", "prompt_mask", "prompt_mask_names", "cases"),
    *("memory_gb", "feature_cache_gb", "sw_batch_size", "trained_structures", "allow_untrained"),
    *("text_dim", "query_dim", "features", "strides", "fine_network_def", "coarse_network", "fine_network", "network"),
    *("handlers", "initialize", "run"),
}


def test_settings_are_all_that_an_answer_depends_on(inference_config: Path) -> None:
    """A new key of the inference config belongs into the batch's ``settings``, or into the list above."""
    base, overlay = (
        ConfigParser.load_config_file(inference_config.with_name(f"{n}.json")) for n in ("inference", "batch_inference")
    )
    plain = {key for key, value in base.items() if not isinstance(value, dict)} - NO_SETTINGS
    assert plain <= set(re.findall(r"@(\w+)", json.dumps(overlay["batch"]["settings"])))


def test_a_folder_with_a_bad_image(
    batch: Callable[..., ConfigWorkflow], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is done, weights are loaded once; the next run does only what is left."""
    loads: list[str] = []
    read = torch.load
    monkeypatch.setattr("torch.load", lambda *args, **kwargs: loads.append("") or read(*args, **kwargs))
    out = tmp_path / "out"
    assert "1 of 4 cases failed" in failure(batch(images=images, output_dir=out).run)
    assert len(loads) == 1
    done = [f"head{n}_{what}" for n in (0, 2, 3) for what in ("preview.png", "seg.json", "seg.nii.gz")]
    assert files_of(out) == ["failures.csv", *done, "summary.csv"]
    (bad,) = rows_of(out / "failures.csv")
    assert bad["image"] == "head1.nii.gz"
    assert bad["reason"].startswith("head1.nii.gz: truncated")
    for number in (0, 2, 3):
        report = json.loads((out / f"head{number}_seg.json").read_text())
        assert report["image"]["shape"] == [20, 18 + number, 22]
        volumes = {s["name"]: s["volume_ml"] for s in report["structures"]}
        rows = {row["structure"]: row for row in rows_of(out / "summary.csv") if row["case"] == f"head{number}"}
        assert {name: float(row["volume_ml"]) if row["volume_ml"] else None for name, row in rows.items()} == volumes
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("head*")}
    (images / "head1.nii.gz").write_bytes((images / "head0.nii.gz").read_bytes())
    batch(images=images, output_dir=out).run()
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("head*")}
    assert after == {**after, **before}
    assert set(after) - set(before) == {"head1_preview.png", "head1_seg.json", "head1_seg.nii.gz"}
    assert (out / "head1_seg.nii.gz").read_bytes() == (out / "head0_seg.nii.gz").read_bytes()
    assert not (out / "failures.csv").exists()


def test_a_list_with_words_for_each_case(batch: Callable[..., ConfigWorkflow], images: Path, tmp_path: Path) -> None:
    table = tmp_path / "images" / "cases.csv"
    table.write_text(
        "image,prompts,name\nhead0.nii.gz,left thalamus; brain-stem,first\nhead0.nii.gz,,second\n"
        "head2.nii.gz,flux capacitor,third\n"
    )
    out = tmp_path / "out"
    assert "1 of 3 cases failed" in failure(batch(images=table, output_dir=out, save_preview=False).run)
    assert files_of(out) == [
        *("failures.csv", "first_seg.json", "first_seg.nii.gz", "second_seg.json", "second_seg.nii.gz", "summary.csv"),
    ]
    asked = [(row["case"], row["structure"]) for row in rows_of(out / "summary.csv")]
    assert asked == [
        ("first", "Left thalamus"),
        ("first", "Brain-stem"),
        ("second", "Left thalamus"),
        ("second", "Right thalamus"),
    ]
    assert "flux capacitor" in rows_of(out / "failures.csv")[0]["reason"]


def test_other_settings_are_done_again(batch: Callable[..., ConfigWorkflow], images: Path, tmp_path: Path) -> None:
    (images / "head1.nii.gz").unlink()
    out = tmp_path / "out"
    for threshold, spared in ((0.5, False), (0.5, True), (0.6, False)):
        before = {path.name: path.stat().st_mtime_ns for path in out.glob("head*")}
        batch(images=images, output_dir=out, save_preview=False, threshold=threshold).run()
        after = {path.name: path.stat().st_mtime_ns for path in out.glob("head*")}
        assert (after == before) is spared


def test_missing_weights_stop_the_batch_at_once(
    batch: Callable[..., ConfigWorkflow], images: Path, tmp_path: Path
) -> None:
    message = failure(batch(images=images, output_dir=tmp_path / "out", weights=str(tmp_path / "no.pt")).run)
    assert message.startswith("no weights at")
    assert not (tmp_path / "out" / "failures.csv").exists()


def test_bad_list_is_refused_before_work(batch: Callable[..., ConfigWorkflow], tmp_path: Path) -> None:
    (tmp_path / "cases.jsonl").write_text('{"image": "a.nii.gz"}\n{"image"}\n')
    assert "cases.jsonl, line 2: not JSON" in failure(
        lambda: batch(images=tmp_path / "cases.jsonl", output_dir=tmp_path / "out").run()
    )


def command(launch: list[str], bundle_dir: Path, options: dict[str, Any], **keys: object) -> dict[str, Any]:
    """Arguments for ``subprocess``: the documented command line, in the bundle's root."""
    given = {**options, "bundle_root": ".", **keys}
    pairs = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    configs = "['configs/inference.json','configs/batch_inference.json']"
    return {
        "args": [sys.executable, *launch, "-m", "monai.bundle", "run", "--config_file", configs, *pairs],
        "cwd": bundle_dir,
        "env": {**os.environ, "OMP_NUM_THREADS": "1"},
    }


@pytest.mark.slow
def test_two_processes_give_what_one_gives(
    batch: Callable[..., ConfigWorkflow], bundle_dir: Path, options: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    """torchrun with two processes: each case once, the same bytes as alone, failures gathered, exit code 1."""
    one, two = tmp_path / "one", tmp_path / "two"
    failure(batch(images=images, output_dir=one).run)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        **command(torchrun, bundle_dir, options, images=images, output_dir=two),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 1
    assert "1 of 4 cases failed" in done.stderr
    started = [line.split("case ")[1][0] for line in done.stderr.splitlines() if line.endswith(": started")]
    assert sorted(started) == ["1", "2", "3", "4"], done.stderr
    assert files_of(one) == files_of(two)
    for name in files_of(one):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.slow
def test_killed_batch_goes_on(
    batch: Callable[..., ConfigWorkflow], bundle_dir: Path, options: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    """SIGKILL after the first case: what is there is whole, and the next run spares it and leaves no rest."""
    (images / "head1.nii.gz").unlink()
    out, alone = tmp_path / "out", tmp_path / "alone"
    with subprocess.Popen(
        **command([], bundle_dir, options, images=images, output_dir=out), stderr=subprocess.DEVNULL
    ) as process:
        limit = time.monotonic() + 500
        while not (out / ".batch" / "head0.json").exists() and time.monotonic() < limit and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert (out / ".batch" / "head0.json").exists()
    (out / ".unfinished_rest").mkdir(exist_ok=True)
    first = (out / "head0_seg.nii.gz").stat().st_mtime_ns
    batch(images=images, output_dir=out).run()
    assert (out / "head0_seg.nii.gz").stat().st_mtime_ns == first
    batch(images=images, output_dir=alone).run()
    assert files_of(out) == files_of(alone)
    for name in files_of(alone):
        assert (out / name).read_bytes() == (alone / name).read_bytes(), name
    assert not list(out.glob(".unfinished_*"))
