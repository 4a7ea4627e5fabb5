"""``segment`` on the command line: what it hands to the bundle's configs, what it writes, how it refuses."""

from __future__ import annotations

import csv
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from typer.testing import CliRunner

from scripts.cli import app

REPORT = {
    "image": {"name": "head.nii.gz"},
    "structures": [{"name": "Liver", "label": 5, "modality": "CT", "kind": "anatomy", "voxels": 7, "volume_ml": 1.5}],
}


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """A run sets up logging for a program of its own; the other tests keep theirs."""
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


class FakeWorkflow:
    """Stands for MONAI's; keeps what it was made with."""

    made: dict[str, Any]

    def __init__(self, **options: Any) -> None:
        type(self).made = options
        self.evaluator = SimpleNamespace(state=SimpleNamespace(output=[{"report": REPORT, "files": {}}]))

    def initialize(self) -> None:
        pass

    def run(self) -> None:
        if "images" in self.made:
            out = Path(self.made["output_dir"])
            out.mkdir()
            (out / "summary.csv").write_text("case,image\n")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorkflow]:
    """The command without the work."""
    FakeWorkflow.made = {}
    monkeypatch.setattr("monai.bundle.ConfigWorkflow", FakeWorkflow)
    return FakeWorkflow


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["segment", *(str(argument) for argument in arguments)])


def error_of(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


def configs_of(made: dict[str, Any]) -> list[str]:
    return [Path(path).stem for path in made["config_file"]]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A small volume."""
    voxels = np.random.default_rng(0).normal(500, 100, (20, 18, 22)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([5.0, 5, 6, 1])), tmp_path / "head.nii.gz")
    return tmp_path / "head.nii.gz"


def test_help_has_examples_and_starts_without_torch(bundle_dir: Path) -> None:
    code = "import sys\nfrom scripts.cli import app\ntry:\n    app(['segment', '--help'])\nfinally:\n"
    code += "    assert not {'torch', 'monai', 'itk'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=bundle_dir, capture_output=True, text=True, timeout=60, check=True
    )
    assert "python -m scripts.cli segment -i head.nii.gz" in done.stdout.partition("Examples:")[2]


def test_only_what_was_given_is_overridden(fake: type[FakeWorkflow], image: Path, tmp_path: Path) -> None:
    result = run("-i", image, "-o", tmp_path / "out", "-p", "left thalamus, brain-stem")
    assert result.exit_code == 0, result.stderr
    assert configs_of(fake.made) == ["inference"]
    overridden = {k: v for k, v in fake.made.items() if k not in ("config_file", "workflow_type", "bundle_root")}
    assert overridden == {
        "image": str(image),
        "output_dir": str(tmp_path / "out"),
        "prompts": ["left thalamus, brain-stem"],
    }


def test_every_option_reaches_a_key_of_the_config(fake: type[FakeWorkflow], image: Path, tmp_path: Path) -> None:
    given: dict[str, tuple[list[object], object]] = {
        "prompts": (["-p", "liver", "-p", "spleen"], ["liver", "spleen"]),
        "modality": (["-m", "CT"], "CT"),
        "save_preview": (["--no-preview"], False),
        "save_masks": (["--masks"], True),
        "stages": (["--stage", "both"], "both"),
        "device": (["--device", "cpu"], "cpu"),
        "memory_gb": (["--memory-gb", "1.5"], 1.5),
        "series": (["--series", "2"], 2),
        "allow_untrained": (["--allow-untrained"], True),
        "prompt_mask": (["--prompt-mask", image], str(image)),
        "output_format": (["--format", "nrrd"], "nrrd"),
        "refinements": (["--refinements", "2"], 2),
        "weights": (["--weights", image], str(image)),
        "fine_weights": (["--fine-weights", image], str(image)),
    }
    options = [part for words, _ in given.values() for part in words]
    result = run("-i", image, "-o", tmp_path / "out", *options, "--config", "single_stage")
    assert result.exit_code == 0, result.stderr
    assert {key: fake.made[key] for key in given} == {key: value for key, (_, value) in given.items()}
    assert configs_of(fake.made) == ["inference", "single_stage"]
    assert set(given) <= set(ConfigParser.load_config_file(fake.made["config_file"][0]))


def test_a_folder_and_a_list_are_batches(fake: type[FakeWorkflow], image: Path, tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("image,prompts\nhead.nii.gz,thalami\n")
    for number, source in enumerate((tmp_path, tmp_path / "cases.csv")):
        out = tmp_path / f"out{number}"
        result = run("-i", source, "-o", out, "--overwrite", "--config", "challenge", "--statistics", "-")
        assert result.exit_code == 0, result.stderr
        assert result.stdout.endswith("case,image\n")
        assert configs_of(fake.made) == ["inference", "batch_inference", "challenge"]
        assert (fake.made["images"], fake.made["overwrite"]) == (str(source), True)
        assert "image" not in fake.made
    run("-i", tmp_path, "-o", tmp_path / "out", "-p", "thalami", "--statistics", tmp_path / "volumes.csv")
    assert fake.made["summary"] == str(tmp_path / "volumes.csv")


def test_a_folder_of_slices_is_one_image(fake: type[FakeWorkflow], tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1").write_bytes(bytes(128) + b"DICM")
    assert run("-i", tmp_path / "series", "-o", tmp_path / "out", "-p", "liver").exit_code == 0
    assert fake.made["image"] == str(tmp_path / "series")


def test_statistics_as_file_and_on_the_screen(fake: type[FakeWorkflow], image: Path, tmp_path: Path) -> None:
    place = tmp_path / "volumes.csv"
    run("-i", image, "-o", tmp_path / "out", "-p", "liver", "--statistics", place)
    shown = run("-i", image, "-o", tmp_path / "out", "-p", "liver", "--statistics", "-").stdout
    assert shown == place.read_text()
    (row,) = csv.DictReader(shown.splitlines())
    assert (row["case"], row["structure"], row["volume_ml"]) == ("head", "Liver", "1.5")


REFUSED = {
    "program as prompt": (["-p", "$print(1)"], "prompts must not begin with"),
    "program as modality": (["-p", "liver", "-m", "@weights"], "modality must not begin with"),
    "unknown overlay": (
        ["-p", "liver", "--config", "sharper"],
        "no config 'sharper': give a file, or one of .*challenge",
    ),
    "refinements in words": (["-p", "liver", "--refinements", "many"], "--refinements is a number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(fake: type[FakeWorkflow], image: Path, tmp_path: Path, case: str) -> None:
    options, message = REFUSED[case]
    assert re.search(message, error_of("-i", image, "-o", tmp_path / "out", *options))
    assert not fake.made


def test_one_mask_for_many_images_is_refused(fake: type[FakeWorkflow], image: Path, tmp_path: Path) -> None:
    assert "--prompt-mask is for one image" in error_of(
        "-i", tmp_path, "-o", tmp_path / "out", "-p", "liver", "--prompt-mask", image
    )


@pytest.fixture(scope="module")
def weights(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict for the config's own network, untrained."""
    torch.manual_seed(0)
    parser = ConfigParser()
    parser.read_config(bundle_dir / "configs" / "inference.json")
    parser["bundle_root"] = str(bundle_dir)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(parser.get_parsed_content("network_def").half().state_dict(), path)
    return path


def test_a_real_run(image: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("-i", image, "-o", out, "-p", "thalami", "--weights", weights, "--device", "cpu", "--statistics", "-")
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in out.iterdir()) == ["head_preview.png", "head_seg.json", "head_seg.nii.gz"]
    table = result.stdout[result.stdout.index("case,image") :].splitlines()
    assert [row["structure"] for row in csv.DictReader(table)] == ["Left thalamus", "Right thalamus"]


def test_a_real_refusal(weights: Path, tmp_path: Path) -> None:
    message = error_of("-i", tmp_path / "no.nii.gz", "-o", tmp_path / "out", "-p", "thalami", "--weights", weights)
    assert "no such file" in message
