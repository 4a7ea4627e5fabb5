"""Fetch released files from the hub: one pinned revision, resumed where a download stopped, checked by hash."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from scripts.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubFile:
    """A downloaded file.

    Attributes:
        path: where it is.
        name: in the repository.
        sha256: that the hub says it has; None for a small file that is no LFS object.
        revision: commit that it is of.
    """

    path: Path
    name: str
    sha256: str | None
    revision: str


def download(
    repository: str, patterns: Mapping[str, str], revision: str | None = None, folder: Path | None = None
) -> dict[str, HubFile]:
    """Download one file for each pattern; what is there already is not loaded again.

    Args:
        repository: such as ``owner/name``.
        patterns: role to a file's name or path in the repository, ``*`` allowed.
        revision: commit, tag or branch; a branch is resolved once, so that all files are of one commit.
        folder: where they go; the hub client's own cache by default.

    Raises:
        InputError: no network or no such repository or file; how to get the files by hand.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as e:
        raise InputError("huggingface_hub is needed to download, install it with pip; or give a folder") from e

    api = HfApi()
    try:
        info = api.model_info(repository, revision=revision, files_metadata=True)
    except Exception as e:  # whatever the transport raises: no network, no such name, no access, offline by choice
        raise _by_hand(repository, revision, e) from e
    commit = info.sha or revision or "main"
    listed = {str(entry.rfilename): entry for entry in info.siblings or []}
    chosen = {role: match_one(list(listed), pattern, repository) for role, pattern in patterns.items()}
    found = {}
    for role, name in chosen.items():
        logger.info("downloading %s of %s at %s", name, repository, commit[:12])
        try:
            path = api.hf_hub_download(repository, name, revision=commit, local_dir=folder)
        except Exception as e:
            raise _by_hand(repository, revision, e) from e
        found[role] = HubFile(Path(path), name, _sha256(listed[name]), commit)
    return found


def match_one(names: list[str], pattern: str, place: str) -> str:
    """The only name that fits a pattern, as a whole or by its last part.

    Raises:
        InputError: none does, or several.
    """
    fitting = sorted(name for name in names if fnmatch(name, pattern) or fnmatch(PurePosixPath(name).name, pattern))
    if len(fitting) == 1:
        return fitting[0]
    there = ", ".join(fitting or sorted(names)[:8]) or "nothing"
    raise InputError(
        f"{place} has {len(fitting) or 'no'} file{'s' * (len(fitting) != 1)} {pattern} ({there}); give the file itself "
        "with --coarse, --fine or --text-encoder"
    )


def _sha256(entry: Any) -> str | None:
    lfs = getattr(entry, "lfs", None)
    value = lfs.get("sha256") if isinstance(lfs, Mapping) else getattr(lfs, "sha256", None)
    return None if value is None else str(value)


def _by_hand(repository: str, revision: str | None, error: Exception) -> InputError:
    reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
    at = f" --revision {revision}" if revision else ""
    return InputError(
        f"cannot download {repository} ({type(error).__name__}: {reason}); with a network, start again to go on where "
        f"it stopped; without, run 'hf download {repository}{at} --local-dir FOLDER' where there is one, bring FOLDER "
        "here and give it in place of the repository"
    )
