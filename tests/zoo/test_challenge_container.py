"""The challenge's container without an engine: its script on real files, and what its Dockerfile would do."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "deploy" / "challenge"
# Coarse and small, so that a case takes a second; the shipped weights know no lesions, which these cases ask for.
QUICK = ["--device", "cpu", "--stages", "1", "--spacing", "[6,6,6]", "--roi_size", "[32,32,32]"]
QUICK += ["--allow_untrained", "true"]


def predict(folder: Path, *arguments: str, offline: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script as the container does, in an environment of its own."""
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ},
        **{"INPUTS": str(folder / "inputs"), "OUTPUTS": str(folder / "outputs")},
        **{"BUNDLE": str(REPOSITORY / "bundle"), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        **variables,
    }
    alone = ["unshare", "--map-root-user", "--net"] if offline else []
    return subprocess.run(
        [*alone, "sh", str(FOLDER / "predict.sh"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
        cwd=folder,
    )


def can_go_offline() -> bool:
    """Whether a process without any network can be started here."""
    command = ["unshare", "--map-root-user", "--net", "true"]
    return shutil.which("unshare") is not None and subprocess.run(command, check=False).returncode == 0


def add_cases(shared: Path, inputs: Path) -> dict[str, tuple[int, ...]]:
    """The real stacks with sentences added; shapes by file name."""
    inputs.mkdir()
    shapes = {}
    for path in sorted((shared / "data" / "ct_lesion_npz").glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        shapes[path.name] = arrays["imgs"].shape
        arrays["text_prompts"] = np.array({"1": "Lesions in whole body CT", "instance_label": 1}, dtype=object)
        np.savez_compressed(inputs / path.name, **arrays)
    return shapes


@pytest.mark.slow
def test_script_on_real_cases(shared: Path, tmp_path: Path) -> None:
    """One bad case among sound ones: these are done, the exit code says so; without it all is well. No network."""
    shapes = add_cases(shared, tmp_path / "inputs")
    bad = tmp_path / "inputs" / "CT_bad.npz"
    bad.write_bytes(b"no archive")
    offline = can_go_offline()
    done = predict(tmp_path, *QUICK, offline=offline)
    assert done.returncode == 1, done.stderr[-2000:]
    assert f"1 of {len(shapes) + 1} cases failed" in done.stderr
    assert "Traceback" not in done.stderr
    with (tmp_path / "outputs" / "failures.csv").open() as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["CT_bad"]
    for name, shape in shapes.items():
        with np.load(tmp_path / "outputs" / name, allow_pickle=False) as file:
            assert file.files == ["segs"]
            assert file["segs"].shape == shape
            assert file["segs"].dtype.kind == "u"
    bad.unlink()
    done = predict(tmp_path, *QUICK, offline=offline)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in (tmp_path / "outputs").glob("*.npz")} == set(shapes)
    if not offline:
        pytest.skip("passed, but with a network: unshare cannot take it away here")


REFUSED = {
    "no inputs": ({"INPUTS": "/absent"}, "error: no folder /absent"),
    "no bundle": ({"BUNDLE": "/absent"}, "error: no bundle in /absent"),
    "other weights": ({"WEIGHTS": "best"}, "error: WEIGHTS is shipped or published, got 'best'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_script_refuses_in_one_line(tmp_path: Path, case: str) -> None:
    variables, message = REFUSED[case]
    (tmp_path / "inputs").mkdir()
    done = predict(tmp_path, PYTHON="false", **variables)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(message)


def test_an_interpreter_is_looked_up_where_the_script_is_called(tmp_path: Path) -> None:
    (tmp_path / "inputs").mkdir()
    (tmp_path / "python").write_text("#!/bin/sh\necho reached\n")
    (tmp_path / "python").chmod(0o755)
    assert predict(tmp_path, PYTHON="./python").stdout == "reached\n"


def test_published_weights_are_taken_where_all_are_there(tmp_path: Path) -> None:
    """The bundle is looked for beside the script, and what it is run with is shown instead of run."""
    (tmp_path / "inputs").mkdir()
    models, configs = tmp_path / "bundle" / "models", tmp_path / "bundle" / "configs"
    models.mkdir(parents=True)
    configs.mkdir()
    (configs / "challenge.json").write_text("{}")
    given = {"BUNDLE": str(tmp_path / "bundle"), "PYTHON": "echo"}
    assert "published.json" not in predict(tmp_path, **given).stdout
    assert "no published weights" in predict(tmp_path, WEIGHTS="published", **given).stderr
    for name in ("medal_s_coarse.pt", "medal_s_fine.pt", "medal_s_text_embeddings.safetensors"):
        (models / name).touch()
    shown = predict(tmp_path, "--device", "cpu", **given).stdout
    order = ["inference", "batch_inference", "published", "challenge"]
    assert re.findall(r"configs/(\w+)\.json", shown) == order
    assert shown.rstrip().endswith("--device cpu")
    assert "published.json" not in predict(tmp_path, WEIGHTS="shipped", **given).stdout


# --- the Dockerfile ---


def instructions() -> list[tuple[str, str]]:
    """Its instructions, comments dropped and continued lines joined."""
    text = (FOLDER / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(first, rest) for first, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def copied() -> list[str]:
    return [source for kind, rest in instructions() if kind == "COPY" for source in rest.split()[:-1]]


def test_dockerfile_is_pinned_unprivileged_and_complete() -> None:
    steps = instructions()
    kinds = [kind for kind, _ in steps]
    assert set(kinds) <= {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "CMD"}
    assert re.fullmatch(r"python:3\.1[0-2]\.\d+-[\w-]+", dict(steps)["FROM"])
    assert kinds.index("USER") > max(number for number, kind in enumerate(kinds) if kind == "RUN")
    assert dict(steps)["USER"] not in ("root", "0")
    assert steps[-1] == ("CMD", '["sh", "predict.sh"]')
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    for source in copied():
        assert (REPOSITORY / source).exists(), source
        assert f"!{source}" in ignored, source


@pytest.mark.e2e
def test_what_the_dockerfile_does_in_an_empty_folder(shared: Path, tmp_path: Path) -> None:
    """Its COPY and RUN steps with a fresh environment in place of the base image, then its command."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("no uv: make setup")
    root = tmp_path / "image"
    root.mkdir()
    for source in copied():
        goal = root / Path(source).name
        if (REPOSITORY / source).is_dir():
            shutil.copytree(REPOSITORY / source, goal, ignore=shutil.ignore_patterns("__pycache__", "eval", "*.log"))
        else:
            shutil.copy(REPOSITORY / source, goal)
    run = {"cwd": root, "check": True, "timeout": 1800, "text": True, "capture_output": True}
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, "venv"], **run)  # type: ignore[call-overload]
    python = str(root / "venv" / "bin" / "python")
    (listing,) = [rest for kind, rest in instructions() if kind == "RUN" and "requirements.txt" in rest]
    list_step, _, install_step = listing.partition("&&")
    subprocess.run(["sh", "-c", list_step.replace("python", python, 1)], **run)  # type: ignore[call-overload]
    install = install_step.split()[1:]
    assert install == ["install", "-r", "requirements.txt", "-c", "constraints.txt"]
    subprocess.run([uv, "pip", *install, "--python", python, "--quiet"], **run)  # type: ignore[call-overload]
    checked = subprocess.run(
        [python, "check_image.py", str(root / "bundle"), "shipped"],
        **run,  # type: ignore[call-overload]
    )
    assert "shipped weights: networks and" in checked.stderr
    shapes = add_cases(shared, tmp_path / "inputs")
    done = predict(tmp_path, *QUICK, PYTHON=python, BUNDLE=str(root / "bundle"), offline=can_go_offline())
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in (tmp_path / "outputs").glob("*.npz")} == set(shapes)
