"""Where studies and labels lie: a folder, or a DICOMweb archive to which labels return as DICOM SEG."""

from __future__ import annotations

from pathlib import Path

from monailabel.config import settings

from lib.datastore.archive import Archive
from lib.datastore.archive_store import ArchiveStore
from lib.datastore.folder_store import FolderStore

__all__ = ["ArchiveStore", "FolderStore", "local", "remote"]
LIST_SECONDS = 10.0


def local(studies: str | Path) -> FolderStore:
    """The datastore of a folder of volumes; labels are kept in ``labels/<tag>`` beside them.

    Args:
        studies: the folder, made if absent.
    """
    return FolderStore(
        str(studies),
        auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
        read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
    )


def remote(url: str, bundle_root: str | Path, list_seconds: float = LIST_SECONDS) -> ArchiveStore:
    """The datastore of a DICOMweb archive, as MONAI Label's ``MONAI_LABEL_DICOMWEB_*`` settings describe it.

    Nothing is asked of the archive yet, so it may be down.

    Args:
        url: root of its DICOMweb services.
        bundle_root: folder of the bundle, whose name, version and terminology the labels carry.
        list_seconds: how long a listing of the archive is believed. It takes the place of
            ``MONAI_LABEL_DICOMWEB_CACHE_EXPIRY``, whose two hours would hide a morning's new studies.
    """
    archive = Archive(
        url,
        user=settings.MONAI_LABEL_DICOMWEB_USERNAME,
        password=settings.MONAI_LABEL_DICOMWEB_PASSWORD,
        prefixes=(settings.MONAI_LABEL_QIDO_PREFIX, settings.MONAI_LABEL_WADO_PREFIX, settings.MONAI_LABEL_STOW_PREFIX),
        read_seconds=settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT,
    )
    return ArchiveStore(
        archive,
        bundle_root=Path(bundle_root),
        search_filter=dict(settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER),
        cache_path=settings.MONAI_LABEL_DICOMWEB_CACHE_PATH.strip() or None,
        list_seconds=list_seconds,
    )
