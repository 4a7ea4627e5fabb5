"""The strategy: propose the unlabelled study of whose answer the model is least certain."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from .uncertainty import Uncertainty

logger = logging.getLogger(__name__)

NAME = "least_certain"
DEFAULT_SECONDS = 20.0


class LeastCertain(Strategy):
    """Rank studies without a final label by how far the model's masked predictions disagree.

    Studies that were never measured are measured on the way, for as long as the request allows; the next request goes
    on from there, and batch inference measures all of them ahead. Order: greatest disagreement first; then studies in
    which nothing was found; then those not measured yet; last those that cannot be read. Among equals the one comes
    first that was proposed longest ago or never, then by id.

    Args:
        uncertainty: measures and remembers.
    """

    def __init__(self, uncertainty: Uncertainty) -> None:
        super().__init__("The study without a saved label of whose answer the model is least certain")
        self.uncertainty = uncertainty

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The study to label next.

        Args:
            request: ``seconds``: time in which to measure studies that were not measured yet (20; at least one is
                measured unless it is 0).
            datastore: its studies; keeps the measurements.

        Returns:
            ``id``, ``weight`` (the disagreement, 0 where there is none) and ``measured`` (studies with a value); None
            where every study has a label.
        """
        studies = sorted(datastore.get_unlabeled_images())
        if not studies:
            logger.info("every study has a final label")
            return None
        self._measure(studies, datastore, float(request.get("seconds", DEFAULT_SECONDS)))
        ranks = {study: self._rank(study, datastore) for study in studies}
        chosen = min(studies, key=lambda study: (*ranks[study], study))
        weight = -ranks[chosen][1]
        measured = sum(1 for group, *_ in ranks.values() if group == 0)
        logger.info("%d studies to label, %d measured; greatest disagreement %.4f", len(studies), measured, weight)
        return {"id": chosen, "weight": weight, "measured": measured}

    def _measure(self, studies: list[str], datastore: Datastore, seconds: float) -> None:
        """Never measured studies first, then those that earlier weights were asked about."""
        old = [study for study in studies if not self.uncertainty.is_fresh(datastore, study)]
        old.sort(key=lambda study: self.uncertainty.known(datastore, study) is not None)
        began = time.monotonic()
        for study in old:
            if time.monotonic() - began >= seconds:
                return
            self.uncertainty.measure(datastore, study)

    def _rank(self, study: str, datastore: Datastore) -> tuple[int, float, int]:
        """Smaller is sooner: group, minus the disagreement, time of the last proposal."""
        info = datastore.get_image_info(study)
        known = self.uncertainty.known(datastore, study)
        proposed = int(((info.get("strategy") or {}).get(NAME) or {}).get("ts", 0))
        if known is None:
            return 2, 0.0, proposed
        if known.get("error"):
            return 3, 0.0, proposed
        value = known.get("value")
        return (1, 0.0, proposed) if value is None else (0, -float(value), proposed)
