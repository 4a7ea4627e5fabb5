"""Real parts for end-to-end tests: Orthanc with a head, the app as a process of its own, and MONAI Label's client."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
from monailabel.client import MONAILabelClient

from clinic.label_server import LabelServer
from clinic.mr_series import write_mr_series
from clinic.orthanc import Orthanc
from clinic.processes import free_port

ENVIRONMENT = {
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
}
# The suite is about the loop, not about the masks: the coarse network alone answers several times faster.
CONF = {"stages": "1"}
FILTER = '{"Modality": "MR"}'


@dataclass(frozen=True)
class Clinic:
    """An archive with one MR study, and a server that works on it."""

    archive: Orthanc
    server: LabelServer
    study: str
    series: str
    files: list[Path]
    folder: Path

    @property
    def client(self) -> MONAILabelClient:
        return MONAILabelClient(self.server.url, tmpdir=str(self.folder), client_id="test")

    def segs(self) -> list[pydicom.Dataset]:
        """The segmentations in the archive, oldest first."""
        found = [requests.get(f"{self.archive.root}/series/{uid}").json() for uid in self.series_ids("SEG")]
        objects = []
        for series in sorted(found, key=lambda item: item["LastUpdate"]):
            content = requests.get(f"{self.archive.root}/instances/{series['Instances'][0]}/file").content
            path = self.folder / "seg.dcm"
            path.write_bytes(content)
            objects.append(pydicom.dcmread(path))
        return objects

    def forget_segs(self) -> None:
        """Delete the segmentations in the archive."""
        for uid in self.series_ids("SEG"):
            requests.delete(f"{self.archive.root}/series/{uid}").raise_for_status()

    def series_ids(self, modality: str) -> list[str]:
        """The archive's own ids of all series of a modality; other tests may have left some."""
        query = {"Level": "Series", "Query": {"Modality": modality}}
        return list(requests.post(f"{self.archive.root}/tools/find", json=query).json())


def head(resolution: int) -> nib.Nifti1Image:
    """The MNI152 T1 template, skull-stripped."""
    from nilearn.datasets import load_mni152_template

    template = load_mni152_template(resolution=resolution)
    return nib.Nifti1Image(template.get_fdata(dtype=np.float32), template.affine)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    try:
        orthanc = Orthanc(tmp_path_factory.mktemp("orthanc"), free_port())
    except RuntimeError as e:
        pytest.skip(str(e))
    with orthanc.start():
        yield orthanc


@pytest.fixture(scope="session")
def clinic(tmp_path_factory: pytest.TempPathFactory, archive: Orthanc) -> Iterator[Clinic]:
    folder = tmp_path_factory.mktemp("clinic")
    files = write_mr_series(head(2), folder / "series")
    archive.send(files)
    first = pydicom.dcmread(files[0], stop_before_pixels=True)
    environment = {
        **ENVIRONMENT,
        "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": FILTER,
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache"),
    }
    with LabelServer(archive.url, free_port(), folder, CONF, environment).start() as server:
        study, series = str(first.StudyInstanceUID), str(first.SeriesInstanceUID)
        yield Clinic(archive, server, study, series, files, folder)  # type: ignore[arg-type]


@pytest.fixture
def fresh(clinic: Clinic) -> Clinic:
    """The clinic without earlier labels."""
    clinic.forget_segs()
    return clinic


@pytest.fixture(scope="session")
def folder_with_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heads of 4 mm: one as RAS, one with all axes turned round."""
    folder = tmp_path_factory.mktemp("studies")
    image = head(4)
    nib.save(image, folder / "head_a.nii.gz")
    turned = nib.as_closest_canonical(image).as_reoriented(np.array([[2, -1], [0, -1], [1, -1]]))
    nib.save(turned, folder / "head_b.nii.gz")
    return folder


@pytest.fixture(scope="session")
def folder_server(tmp_path_factory: pytest.TempPathFactory, folder_with_heads: Path) -> Iterator[LabelServer]:
    folder = tmp_path_factory.mktemp("server")
    with LabelServer(str(folder_with_heads), free_port(), folder, CONF, ENVIRONMENT).start() as server:
        yield server  # type: ignore[misc]


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., LabelServer]]:
    """Start servers that a test may kill; whatever still runs is stopped."""
    started: list[LabelServer] = []

    def start(studies: str | Path, **options: object) -> LabelServer:
        server = LabelServer(str(studies), free_port(), tmp_path, environment=ENVIRONMENT, **{"conf": CONF, **options})  # type: ignore[arg-type]
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()
