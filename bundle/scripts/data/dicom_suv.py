"""The factor from stored PET values to standardised uptake values by body weight, where the header allows it.

The rules are those of the Quantitative Imaging Biomarkers Alliance (QIBA, "SUV vendor-neutral pseudo-code", the case
without private attributes): SUVbw = activity concentration [Bq/ml] * body weight [g] / dose at the time to which the
scan is decay corrected [Bq].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta

from pydicom.dataset import Dataset
from pydicom.valuerep import DA, DT, TM

GRAMS_PER_KG = 1000.0
LONGEST_WAIT = timedelta(hours=12)  # more between injection and scan means that a date was changed


def suv_factor(headers: Sequence[Dataset]) -> tuple[float | None, str]:
    """Factor for one series.

    Args:
        headers: of all its slices.

    Returns:
        The factor by which rescaled values are multiplied, and ""; or None and the reason why there is none.
    """
    first = headers[0]
    units = str(first.get("Units") or "")
    if units == "GML":
        kind = str(first.get("SUVType") or "BW")
        return (1.0, "") if kind == "BW" else (None, f"the values are SUV of type {kind}, not by body weight")
    if units != "BQML":
        return None, f"the unit is {units or 'not given'}, not BQML"
    corrected = [str(value) for value in first.get("CorrectedImage") or ()]
    if not {"ATTN", "DECY"} <= set(corrected):
        return None, "the images are not corrected for attenuation and decay"
    weight = _positive(first, "PatientWeight")
    tracer = next(iter(first.get("RadiopharmaceuticalInformationSequence") or ()), Dataset())
    dose, half_life = _positive(tracer, "RadionuclideTotalDose"), _positive(tracer, "RadionuclideHalfLife")
    if weight is None or dose is None or half_life is None:
        return None, "body weight, dose or half-life is missing"
    correction = str(first.get("DecayCorrection") or "")
    if correction == "ADMIN":
        return weight * GRAMS_PER_KG / dose, ""
    if correction != "START":
        return None, f"the decay correction is {correction or 'not given'}, not START or ADMIN"
    wait = _wait(headers, tracer)
    if wait is None:
        return None, "the time from injection to scan cannot be told"
    return weight * GRAMS_PER_KG / (dose * 2 ** (-wait.total_seconds() / half_life)), ""


def _wait(headers: Sequence[Dataset], tracer: Dataset) -> timedelta | None:
    """Time from injection to the start of the scan."""
    start = _moment(headers[0], "SeriesDate", "SeriesTime")
    acquired = [_moment(header, "AcquisitionDate", "AcquisitionTime") for header in headers]
    known = [moment for moment in acquired if moment is not None]
    # A series time after the first acquisition is that of a later reconstruction.
    if start is None or not known or start > min(known):
        return None
    injected = _injection(tracer, start)
    if injected is None:
        return None
    wait = start - injected
    return wait if timedelta(0) <= wait <= LONGEST_WAIT else None


def _injection(tracer: Dataset, start: datetime) -> datetime | None:
    try:
        moment = DT(tracer.get("RadiopharmaceuticalStartDateTime") or "")
        if moment:
            return moment.replace(tzinfo=None)
        time = TM(tracer.get("RadiopharmaceuticalStartTime") or "")
    except (TypeError, ValueError):
        return None
    if not time:
        return None
    injected = datetime.combine(start.date(), time)
    return injected if injected <= start else injected - timedelta(days=1)


def _moment(header: Dataset, date: str, time: str) -> datetime | None:
    try:
        day, hour = DA(header.get(date) or ""), TM(header.get(time) or "")
    except (TypeError, ValueError):
        return None
    return datetime.combine(day, hour) if day and hour else None


def _positive(header: Dataset, attribute: str) -> float | None:
    try:
        value = float(header.get(attribute))
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None
