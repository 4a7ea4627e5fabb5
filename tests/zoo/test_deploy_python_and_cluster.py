"""docs/deploy.md: its Python runs as it stands there, and the SLURM example shares cases among processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.deployment import SegmentOperator
from scripts.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "deploy.md"
SBATCH = REPOSITORY / "deploy" / "slurm" / "segment.sbatch"
AFFINE = np.diag([2.0, 2, 2, 1])  # small enough for one window of each stage
COARSE = {"device": "cpu", "stages": [1], "spacing": [6.0] * 3, "roi_size": [32] * 3}


def blobs(seed: int) -> np.ndarray:
    """A small volume of blocks of random brightness."""
    random = np.random.default_rng(seed)
    return np.kron(random.normal(500, 200, (4, 5, 4)), np.ones((8, 8, 8))).astype(np.float32)


def save_studies(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        nib.save(nib.Nifti1Image(blobs(number), AFFINE), folder / f"head{number}.nii.gz")
    return folder


@pytest.mark.slow
def test_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block, one after another, in a folder with a bundle and some studies."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 2
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "bundle").symlink_to(REPOSITORY / "bundle")
    save_studies(tmp_path / "studies", 1)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {"__name__": "page"})
    assert nib.load(tmp_path / "out" / "head0_seg.nii.gz").shape == blobs(0).shape
    assert nib.load(tmp_path / "in_memory" / "head0.nii.gz").shape == blobs(0).shape


@pytest.fixture(scope="module")
def operator() -> SegmentOperator:
    """The shipped coarse network, on a grid that takes a second."""
    return SegmentOperator(REPOSITORY / "bundle", **COARSE)


def test_operator_takes_one_image_after_another(operator: SegmentOperator) -> None:
    """The network stays the same object with the same weights, and an image gives the same whatever came before."""
    network = operator.session.pipeline.network
    before = [parameter.clone() for parameter in network.parameters()]
    first, _, again = (operator.compute(blobs(seed), AFFINE, "both thalami") for seed in (0, 1, 0))
    assert first.label_map.shape == blobs(0).shape
    assert [entry["name"] for entry in first.report["structures"]] == ["Left thalamus", "Right thalamus"]
    np.testing.assert_array_equal(first.label_map, again.label_map)
    assert operator.session.pipeline.network is network
    assert all((a == b).all() for a, b in zip(before, network.parameters(), strict=True))


def test_operator_survives_a_bad_case(operator: SegmentOperator) -> None:
    with pytest.raises(ValueError, match="flux capacitor"):
        operator.compute(blobs(0), AFFINE, "flux capacitor")
    with pytest.raises(InputError, match="affine"):
        operator.compute(blobs(0), None, "thalami")
    assert operator.compute(blobs(0), AFFINE, "thalami").label_map.shape == blobs(0).shape


def test_operator_refuses_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give the folder of the bundle"):
        SegmentOperator(tmp_path)
    with pytest.raises(InputError, match="no config 'sharper'"):
        SegmentOperator(REPOSITORY / "bundle", overlays=["sharper"])


def sbatch(*arguments: object, path: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the example as a shell script."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("SLURM_")},
        **{"PYTHON": sys.executable, "BUNDLE": str(REPOSITORY / "bundle"), "OMP_NUM_THREADS": "1"},
        **variables,
        **({"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"} if path else {}),
    }
    command = ["bash", str(SBATCH), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580, check=False)


@pytest.mark.slow
def test_two_processes_share_the_cases(tmp_path: Path) -> None:
    """The job's own command on this machine as the one node: each case once, exit code 0."""
    studies = save_studies(tmp_path / "studies", 3)
    options = ["--device", "cpu", "--stages", "1", "--spacing", "[6,6,6]", "--roi_size", "[32,32,32]"]
    done = sbatch(studies, tmp_path / "out", "['both thalami', 'brain-stem']", *options, PROCESSES="2")
    assert done.returncode == 0, done.stderr[-2000:]
    started = [line.split("case ")[1][0] for line in done.stderr.splitlines() if line.endswith(": started")]
    assert sorted(started) == ["1", "2", "3"], done.stderr[-2000:]
    assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == 3
    assert (tmp_path / "out" / "summary.csv").read_text().count("Brain-stem") == 3


def test_a_job_of_several_nodes_meets_on_the_first(tmp_path: Path) -> None:
    """The command that SLURM would start on each node; its own programs are stand-ins that show it."""
    for name, text in {"srun": 'printf "%s\\n" "$@"', "scontrol": "printf 'node07\\nnode08\\n'"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    job = {
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_JOB_NODELIST": "node[07-08]",
    }
    done = sbatch(tmp_path, tmp_path / "out", "['brain-stem']", "--amp", "true", path=str(tmp_path), **job)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    pairs = dict(pairwise(words))
    assert (pairs["--nnodes"], pairs["--nproc_per_node"]) == ("2", "4")
    assert (pairs["--rdzv_endpoint"], pairs["--rdzv_id"]) == ("node07:29500", "42")
    assert (pairs["--images"], pairs["--prompts"]) == (str(tmp_path), "['brain-stem']")
    assert words[-2:] == ["--amp", "true"]
    assert "--standalone" not in words


def test_sbatch_says_what_it_wants() -> None:
    assert subprocess.run(["bash", "-n", str(SBATCH)], check=False).returncode == 0
    done = sbatch("only_one")
    assert (done.returncode, done.stderr) == (1, "error: wanted STUDIES OUTPUT PROMPTS, got 1 arguments\n")
