"""Stop the image's build where the weights asked for are absent or do not fit their networks.

Run as ``python check_image.py BUNDLE shipped|published``.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

OVERLAYS = {"shipped": (), "published": ("published",)}
logger = logging.getLogger("check_image")


def check(bundle: Path, weights: str) -> None:
    """Build both networks of the inference config and load their weights.

    Args:
        bundle: folder of the bundle.
        weights: which: "shipped" or "published".

    Raises:
        ValueError: other weights than those, or files that are absent or do not fit.
    """
    if weights not in OVERLAYS:
        raise ValueError(f"WEIGHTS is one of {', '.join(OVERLAYS)}, got {weights!r}")
    os.chdir(bundle)
    sys.path.insert(0, str(bundle))
    from monai.bundle import ConfigParser

    from scripts.weights import WeightsLoader

    parser = ConfigParser()
    parser.read_config([f"configs/{name}.json" for name in ("inference", *OVERLAYS[weights])])
    for handler in parser.get_parsed_content("handlers"):
        if isinstance(handler, WeightsLoader):
            handler()
    bank = parser.get_parsed_content("embedding_bank")
    logger.info("%s weights: networks and %d sentence vectors are there and fit", weights, len(bank))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        check(Path(sys.argv[1]).resolve(), sys.argv[2])
    except ValueError as error:
        sys.exit(f"error: {error}")
