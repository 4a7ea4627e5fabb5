"""Patient data stays out of the logs, whatever the levels are."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed: make setup-label")

UID = "1.2.826.0.1.3680043.8.498.101"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What a handler of the root logger writes, with the filter on it."""
    from lib.server.logs import keep_patients_out

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(name)s %(message)s"))
    known = [(item, item.filters) for item in logging.root.handlers]
    logging.root.addHandler(handler)
    keep_patients_out(("/data/studies/ward 7",))
    keep_patients_out(("/data/studies/ward 7",))
    assert len(handler.filters) == 1, "calling it twice puts one filter on a handler"
    yield stream
    logging.root.removeHandler(handler)
    for item, filters in known:
        item.filters = filters


def test_what_packages_say_about_requests_is_dropped(written: io.StringIO) -> None:
    chatty = logging.getLogger("monailabel.tasks.infer.basic_infer")
    chatty.setLevel("INFO")  # as MONAI Label does at each request
    chatty.info("Infer Request (final): {'prompt': 'the tumour of Mr Doe'}")
    archive = logging.getLogger("dicomweb_client.web")
    archive.setLevel("INFO")
    archive.info("search for series of Mr Doe")
    chatty.warning("Failed to finish Infer Task: 3")
    assert written.getvalue() == "monailabel.tasks.infer.basic_infer Failed to finish Infer Task: 3\n"


def test_uids_files_queries_and_the_studies_folder_are_blackened(written: io.StringIO) -> None:
    ours = logging.getLogger("lib.anything")
    ours.warning("image %s, series %s", "/data/studies/ward 7/Doe_John.nii.gz", UID)
    ours.warning('"GET /datastore/image?image=Doe_John&tag=final HTTP/1.1" 200 in 0.013 s with 127.0.0.1, monai 1.6.1')
    text = written.getvalue()
    for secret in ("Doe", "John", UID, "ward 7"):
        assert secret not in text
    for kept in ("GET /datastore/image", "200 in 0.013 s", "127.0.0.1", "monai 1.6.1"):
        assert kept in text


def test_traces_are_blackened_too(written: io.StringIO) -> None:
    try:
        raise FileNotFoundError(f"No such file: '/data/studies/ward 7/Doe_John.nrrd', series {UID}")
    except FileNotFoundError:
        logging.getLogger("lib.anything").exception("request 7 failed")
    text = written.getvalue()
    assert "Traceback" in text
    assert "FileNotFoundError" in text
    assert "Doe" not in text
    assert UID not in text
