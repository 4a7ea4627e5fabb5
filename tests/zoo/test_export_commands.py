"""The export command, the run with what it writes, and MONAI's own export commands on network_def."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import typer
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export
from typer.testing import CliRunner

from scripts.commands.export import export
from scripts.deployment import SegmentOperator
from scripts.errors import InputError, find_user_error
from scripts.export import ExportedNetwork, load_exported
from scripts.weights import load_weights

QUICK: dict[str, Any] = {"spacing": [6.0] * 3, "roi_size": [32] * 3, "stages": [1], "progress": False, "device": "cpu"}


def run_export(*arguments: object) -> Any:
    app = typer.Typer()
    app.command()(export)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped coarse network, exported by the command."""
    folder = tmp_path_factory.mktemp("exported")
    result = run_export("-n", "coarse", "-o", folder)
    assert result.exit_code == 0, result.output
    assert "model.pt2" in result.output
    assert "largest difference from the network" in result.output
    assert [path.name for path in folder.iterdir()] == ["model.pt2"]
    return folder / "model.pt2"


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """A small volume of blobs."""
    random = np.random.default_rng(0)
    voxels = np.kron(random.normal(500, 200, (5, 6, 5)), np.ones((8, 8, 8))).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([4.0, 4, 4, 1])), tmp_path / "head.nii.gz")
    return tmp_path / "head.nii.gz"


def shipped(bundle_dir: Path) -> torch.nn.Module:
    parser = ConfigParser()
    parser.read_config(bundle_dir / "configs" / "inference.json")
    parser.update({"bundle_root": str(bundle_dir)})
    network: torch.nn.Module = parser.get_parsed_content("network_def")
    load_weights(network, bundle_dir / "models" / "model.pt", "coarse")
    return network.eval()


def test_the_overlay_runs_the_artefact(exported: Path, head: Path, bundle_dir: Path, tmp_path: Path) -> None:
    """The same words and image give the same label map and probabilities as the network itself."""
    reports, maps = [], []
    for name, weights in (("inference", bundle_dir / "models" / "model.pt"), ("exported", exported)):
        files = [str(bundle_dir / "configs" / f"{config}.json") for config in dict.fromkeys(("inference", name))]
        workflow = ConfigWorkflow(
            config_file=files,
            workflow_type="infer",
            logging_file=False,
            **QUICK,
            bundle_root=str(bundle_dir),
            image=str(head),
            prompts=["thalami", "brain-stem", "left hippocampus"],
            output_dir=str(tmp_path / name),
            weights=str(weights),
            save_preview=False,
        )
        workflow.initialize()
        workflow.run()
        network = workflow.parser.get_parsed_content("coarse_network")
        assert isinstance(network, ExportedNetwork) is (name == "exported")
        reports.append(json.loads((tmp_path / name / "head_seg.json").read_text())["structures"])
        maps.append(np.asarray(nib.load(tmp_path / name / "head_seg.nii.gz").dataobj))
    assert maps[0].any()
    assert (maps[0] != maps[1]).mean() < 1e-4
    for mine, theirs in zip(*reports, strict=True):
        assert mine["name"] == theirs["name"]
        assert mine["mean_probability"] == pytest.approx(theirs["mean_probability"], abs=1e-3)


def test_the_operator_takes_the_artefact(exported: Path, bundle_dir: Path) -> None:
    """In memory, from Python; without features() and answer() of the network."""
    operator = SegmentOperator(bundle_dir, overlays=["exported"], weights=str(exported), **QUICK)
    assert isinstance(operator.session.pipeline.network["coarse"], ExportedNetwork)
    voxels = np.random.default_rng(0).normal(500, 100, (40, 48, 40))
    result = operator.compute(voxels, np.diag([4.0, 4, 4, 1]), "thalami")
    assert result.label_map.shape == voxels.shape
    assert len(result.report["structures"]) == 2


def test_facts_of_the_artefact(exported: Path) -> None:
    facts = load_exported(exported).facts
    assert (facts.divisor, facts.query_width, facts.weights, facts.torch) == (16, 384, "model.pt", torch.__version__)
    assert facts.bundle.startswith("Medal S ")
    assert len(facts.weights_sha256) == 64


def test_command_refuses_bad_input(tmp_path: Path) -> None:
    for arguments, message in {
        ("--config", "sharper"): "no config 'sharper'",
        ("-n", "fine", "--fine-weights", tmp_path / "no.pt"): "no weights at",
    }.items():
        result = run_export("-o", tmp_path, *arguments)
        assert result.exit_code == 1
        assert message in str(find_user_error(result.exception))
    assert not list(tmp_path.iterdir())


def test_weights_are_no_artefact(bundle_dir: Path) -> None:
    with pytest.raises(InputError, match=r"model\.pt: refused"):
        load_exported(bundle_dir / "models" / "model.pt")


def test_ckpt_export(bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchScript by tracing, for the structures that the weights know: any patch, the batch of input_shape."""
    monkeypatch.chdir(bundle_dir)
    ckpt_export(
        "network_def",
        filepath=str(tmp_path / "model.ts"),
        config_file="configs/inference.json",
        use_trace=True,
        input_shape=[1, 1, 32, 32, 32],
    )
    script, network = torch.jit.load(tmp_path / "model.ts"), shipped(bundle_dir)
    image = torch.randn(1, 1, 48, 32, 64)
    with torch.no_grad():
        given, wanted = script(image), network(image)
    torch.testing.assert_close(given, wanted, atol=1e-3, rtol=1e-3)


def test_ckpt_export_by_scripting_fails_as_documented(
    bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle_dir)
    with pytest.raises(RuntimeError, match="statically determinable length"):
        ckpt_export("network_def", filepath=str(tmp_path / "m.ts"), config_file="configs/inference.json")


@pytest.mark.e2e
def test_onnx_export(bundle_dir: Path, tmp_path: Path) -> None:
    """`python -m monai.bundle onnx_export`, run by ONNX Runtime; torch's newer exporter lacks the pooling operator."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install onnx onnxscript onnxruntime")
    import onnxruntime

    options = {
        "filepath": tmp_path / "model.onnx",
        "ckpt_file": "models/model.pt",
        "config_file": "configs/inference.json",
        "use_trace": "true",
        "input_shape": "[1,1,64,64,64]",
        "converter_kwargs": "{'dynamo':False}",
    }
    pairs = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "onnx_export", "network_def", *pairs],
        cwd=bundle_dir,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    image = torch.randn(1, 1, 64, 64, 64)
    (given,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        wanted = shipped(bundle_dir)(image)
    np.testing.assert_allclose(given, wanted.numpy(), atol=2e-3, rtol=2e-3)
