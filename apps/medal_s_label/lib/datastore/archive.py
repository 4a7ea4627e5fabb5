"""Ask a DICOMweb archive for series, fetch and store them; every failure is one clear line."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import requests
from dicomweb_client.session_utils import create_session_from_user_pass
from monailabel.datastore.dicom import DICOMwebClientX
from pydicom.dataset import Dataset
from requests.adapters import HTTPAdapter

from lib.server.errors import RequestError

logger = logging.getLogger(__name__)
CONNECT_SECONDS = 5.0
# Not every archive can decompress what it holds (Orthanc with JPEG 2000); the bundle's reader can.
AS_STORED = (("application/dicom", "*"),)
UID = re.compile(r"[0-9]+(\.[0-9]+)*")
MAX_UID = 64


class _Patience(HTTPAdapter):
    """An adapter that gives up on a silent archive: `requests` by itself waits for ever."""

    def __init__(self, seconds: tuple[float, float]) -> None:
        super().__init__()
        self.seconds = seconds

    def send(self, request: Any, **options: Any) -> Any:  # type: ignore[override]
        """Send with a time limit where the caller set none."""
        return super().send(request, **{**options, "timeout": options.get("timeout") or self.seconds})


class Archive:
    """A DICOMweb archive.

    Args:
        url: root of its services.
        user: name for basic authentication; none where empty.
        password: belongs to it.
        prefixes: of QIDO-RS, WADO-RS and STOW-RS behind the root.
        read_seconds: longest silence of the archive while it answers.
    """

    def __init__(
        self,
        url: str,
        user: str = "",
        password: str = "",
        prefixes: Sequence[str | None] = (None, None, None),
        read_seconds: float = 30.0,
    ) -> None:
        session = create_session_from_user_pass(user, password) if user and password else requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Patience((CONNECT_SECONDS, read_seconds)))
        qido, wado, stow = prefixes
        self.client = DICOMwebClientX(
            url=url.rstrip("/"), session=session, qido_url_prefix=qido, wado_url_prefix=wado, stow_url_prefix=stow
        )
        self.client.set_http_retry_params(retry=False)  # the user waits: say at once that it failed

    def search(self, filters: Mapping[str, Any]) -> list[Dataset]:
        """The series that match.

        Raises:
            RequestError: 503, the archive does not answer, or not as it should.
        """
        with clear_errors("search for series"):
            found = self.client.search_for_series(search_filters=dict(filters))
            return [Dataset.from_json(item) for item in found]

    def find(self, series: str) -> Dataset:
        """One series by its UID.

        Raises:
            RequestError: 404, no such series; 503 as for ``search``.
        """
        check_uid(series)
        # Some archives answer filters that they do not know with everything.
        for item in self.search({"SeriesInstanceUID": series}):
            if str(item.SeriesInstanceUID) == series:
                return item
        raise RequestError(404, f"the archive has no series {series}")

    def fetch(self, study: str, series: str, folder: Path) -> None:
        """Put the files of a series into a folder that does not exist yet: all of them, or no folder.

        Raises:
            RequestError: 503, the archive failed meanwhile; 507, the disk is full.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".unfinished_", dir=folder.parent))
        try:
            with clear_errors("fetch a series"):
                count = 0
                for count, instance in enumerate(self.client.iter_series(study, series, AS_STORED), start=1):
                    instance.save_as(scratch / f"{count:05d}.dcm")
            if not count:
                raise RequestError(503, "the archive sent no images of this series: look into the archive")
            scratch.replace(folder)
        except OSError as e:
            raise RequestError(507, f"cannot keep the series in the cache ({e.strerror}): make room on the disk") from e
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        logger.info("fetched a series of %d files", count)

    def metadata(self, study: str, series: str) -> Dataset:
        """The attributes of the first instance of a series.

        Raises:
            RequestError: 503 as for ``search``.
        """
        with clear_errors("read a label's attributes"):
            answer = self.client.retrieve_series_metadata(study, series)[0]
            return Dataset.from_json(answer, bulk_data_uri_handler=lambda *_: None)  # pixels stay there

    def store(self, instance: Dataset) -> None:
        """Store one instance and make sure that the archive has it.

        A success status proves nothing: archives answer 200 although they kept nothing.

        Raises:
            RequestError: 502, refused or not found afterwards; 503 as for ``search``.
        """
        uid = str(instance.SOPInstanceUID)
        with clear_errors("store a label"):
            answer = self.client.store_instances([instance])
            stored = {str(item.ReferencedSOPInstanceUID) for item in answer.get("ReferencedSOPSequence") or ()}
            kept = self.client.search_for_instances(
                str(instance.StudyInstanceUID), str(instance.SeriesInstanceUID), search_filters={"SOPInstanceUID": uid}
            )
        if uid not in stored or not kept:
            codes = [str(item.get("FailureReason", "unknown")) for item in answer.get("FailedSOPSequence") or ()]
            raise RequestError(
                502,
                f"the archive did not keep the label (reason {', '.join(codes) or 'not given'}): nothing was saved, "
                "look into the archive's log",
            )


def check_uid(uid: str) -> str:
    """The UID itself.

    Raises:
        RequestError: 404, it is none and so no series has it.
    """
    if not isinstance(uid, str) or len(uid) > MAX_UID or not UID.fullmatch(uid):
        raise RequestError(404, "an image of an archive is named by its SeriesInstanceUID: digits and dots")
    return uid


@contextlib.contextmanager
def clear_errors(action: str) -> Iterator[None]:
    """Say in one line, without addresses or identifiers, what the archive failed at.

    Args:
        action: what was wanted of it, after "to".
    """
    try:
        yield
    except requests.ConnectionError as e:
        raise RequestError(503, f"the DICOMweb archive does not answer (to {action}): try again when it is up") from e
    except requests.Timeout as e:
        raise RequestError(503, f"the DICOMweb archive is too slow (to {action}): try again") from e
    except requests.HTTPError as e:
        status = getattr(e.response, "status_code", None)
        hint = "check user and password" if status in (401, 403) else "look into its log"
        raise RequestError(503, f"the DICOMweb archive answered {status} (to {action}): {hint}") from e
    except (requests.RequestException, ValueError, KeyError, IndexError, AttributeError) as e:
        raise RequestError(
            503, f"the DICOMweb archive's answer makes no sense ({type(e).__name__}, to {action}): check its address"
        ) from e
