"""docs/tutorials/serve.md word for word: the server's start command, curl and the client, on another port."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(importlib.util.find_spec("monailabel") is None, reason="no MONAI Label: make setup-label"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]
ADDRESS = "http://127.0.0.1:8000"


def test_serve(bundle_dir: Path, tmp_path: Path, blocks: Callable[[str], list[Any]]) -> None:
    from nilearn.datasets import load_mni152_template

    from clinic.processes import Service, free_port

    (tmp_path / "apps").symlink_to(bundle_dir.parent / "apps")
    (tmp_path / "my_images").mkdir()
    template = load_mni152_template(resolution=4)
    head = nib.Nifti1Image(template.get_fdata(dtype=np.float32), template.affine)
    nib.save(head, tmp_path / "my_images" / "head.nii.gz")
    start, ask, python = blocks("tutorials/serve.md")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    ((_, *words),) = start.commands
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"PATH": path}
    command = [sys.executable, *words, "--port", str(port)]
    with Service(command, f"{address}/info/", tmp_path / "server.log", environment, tmp_path).start():
        for curl in ask.commands:
            subprocess.run(["bash", "-ec", shlex.join(curl).replace(ADDRESS, address)], cwd=tmp_path, check=True)
        code = python.text.replace(ADDRESS, address)
        printed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert set(np.unique(np.asarray(nib.load(tmp_path / "seg.nii.gz").dataobj))) == {0, 1, 2}
    assert "Brain-stem" in printed.stdout
    saved = nib.load(tmp_path / "my_images" / "labels" / "final" / "head.nii.gz")
    assert saved.shape == head.shape
    assert len(np.unique(np.asarray(saved.dataobj))) == 4
