"""Keeps patient data out of the logs: requests, image names, DICOM identifiers.

MONAI Label logs whole requests, paths and ids at level INFO, and sets its loggers' levels anew with each request.
Filters on the handlers hold whatever the levels are.
"""

from __future__ import annotations

import logging
import re

# What stays of a record: uids, files of images and what stands in the query of an address.
_PATTERNS = (
    (re.compile(r"\b[0-2](?:\.\d+){4,}\b"), "<uid>"),
    (re.compile(r"([?&](?:image|id|label|session_id|tag)=)[^&\s\"']+"), r"\1<id>"),
    (re.compile(r"[^\s'\"=,;:()\[\]{}]*\.(?:nii\.gz|nii|nrrd|mha|mhd|dcm|bin)\b", re.IGNORECASE), "<file>"),
)
# What these say below a warning is about single requests, series and segments.
_CHATTY = ("monailabel.", "dicomweb_client.", "highdicom.")


class PatientDataFilter(logging.Filter):
    """Drops what MONAI Label and the DICOM packages say about single requests, and blackens the rest.

    Args:
        hidden: texts that never appear, such as the folder of the studies.
    """

    def __init__(self, hidden: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.hidden = tuple(text for text in hidden if len(text) > 1)

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a record that is dropped; others lose what may name a patient."""
        if record.name.startswith(_CHATTY) and record.levelno < logging.WARNING:
            return False
        if getattr(record, "blackened", False):
            return True
        record.msg, record.args = self.blacken(record.getMessage()), ()
        if hasattr(record, "color_message"):
            record.color_message = record.msg
        if record.exc_info:
            # The formatter takes this text instead of formatting the exception itself.
            record.exc_text = self.blacken(logging.Formatter().formatException(record.exc_info))
        record.blackened = True
        return True

    def blacken(self, text: str) -> str:
        """A text without hidden texts, uids and names of image files."""
        for hidden in self.hidden:
            text = text.replace(hidden, "<studies>")
        for pattern, stands_for in _PATTERNS:
            text = pattern.sub(stands_for, text)
        return text


def keep_patients_out(hidden: tuple[str, ...] = ()) -> None:
    """Put the filter on every handler that exists; calling it again replaces the filter.

    Args:
        hidden: see ``PatientDataFilter``.
    """
    named = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    rule = PatientDataFilter(hidden)
    for handler in {handler for logger in (logging.root, *named) for handler in logger.handlers}:
        # Names decide, not classes: MONAI Label unloads and re-imports this package.
        handler.filters = [known for known in handler.filters if type(known).__name__ != PatientDataFilter.__name__]
        handler.addFilter(rule)
