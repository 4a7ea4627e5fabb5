"""MONAI Label's stock `monaibundle` app serves the bundle as it is, with all that its weights know."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monailabel.client import MONAILabelClient

from scripts.interactive import Session

pytestmark = pytest.mark.e2e


def sample_app() -> Path:
    """The app of MONAI Label's wheel."""
    roots = [Path(sysconfig.get_path("data")), Path(sysconfig.get_path("purelib"))]
    for root in roots:
        for pattern in (
            "monailabel/sample-apps/monaibundle",
            "monailabel-*.data/data/monailabel/sample-apps/monaibundle",
        ):
            found = next(root.glob(pattern), None)
            if found is not None:
                return found
    pytest.skip("this installation of MONAI Label has no sample apps")


def test_stock_bundle_app(
    start_server: Callable[..., Any], folder_with_heads: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    app = shutil.copytree(sample_app(), tmp_path / "monaibundle")
    (app / "model").mkdir(exist_ok=True)
    (app / "model" / "medal_s").symlink_to(bundle_dir)
    image = folder_with_heads / "head_b.nii.gz"
    (tmp_path / "studies").mkdir()
    shutil.copy(image, tmp_path / "studies")
    # Any source but MONAI's own host: that one is asked for its list of models at each start.
    conf = {"models": "medal_s", "zoo_source": "ngc", "skip_trainers": "true", "sam2": "false"}
    server = start_server(tmp_path / "studies", app=app, conf=conf)
    client = MONAILabelClient(server.url, tmpdir=str(tmp_path))
    model = client.info()["models"]["medal_s"]
    assert model["type"] == "segmentation"
    file, answer = client.infer("medal_s", "head_b", {"device": "cpu"})
    found = nib.load(file)
    session = Session.from_bundle(bundle_dir, device="cpu", stages=[1])
    session.set_image(str(image))
    expected = session.segment(list(model["labels"]))
    assert np.array_equal(found.affine, nib.load(image).affine)
    assert np.array_equal(np.asarray(found.dataobj), expected.label_map)
    assert answer["label_names"] == model["labels"]
