"""The commands of docs/published_weights.md, run as they stand, on a small release in a copy of the bundle."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from scripts.published.overlay import NETWORK_ROLES, read_overlay


@pytest.mark.e2e  # two programs of their own, each of which imports torch and MONAI anew
def test_the_tutorial_runs(release: Path, makers: Any, bundle_dir: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_dir / "scripts", bundle / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(bundle_dir / "configs", bundle / "configs")
    makers.overlay(bundle / "configs")  # the published overlay, for small networks
    (bundle / release.name).symlink_to(release)
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(0, 90, (20, 20, 20)), np.eye(4)), bundle / "ct.nii.gz")
    text = (bundle_dir.parent / "docs" / "published_weights.md").read_text()
    commands = re.findall(r"<!-- tested -->\n```bash\n(.+?)\n```", text)
    assert len(commands) == 2
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "python"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=bundle, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    written = {file.name for file in (bundle / "models").iterdir()}
    assert written == set(re.findall(r"`(medal_s_[\w.]+|published_import\.\w+)`", text))
    assert (bundle / "out" / "ct_seg.nii.gz").is_file()
    assert nib.load(bundle / "out" / "ct_seg.nii.gz").shape == (20, 20, 20)


def test_the_overlays_are_of_the_published_sizes() -> None:
    """Without weights: what the shipped overlays say of the releases."""
    for name, roles in (("published", NETWORK_ROLES), ("sat", NETWORK_ROLES[:1])):
        model = read_overlay(name)
        assert model.outputs.keys() == {*roles, "text_encoder"} == model.patterns.keys()
        network = model.network()
        parameters = sum(parameter.numel() for parameter in network.parameters())
        assert parameters == 109_414_272 - (0 if name == "published" else 221_376)  # SAT has no fusion_conv
