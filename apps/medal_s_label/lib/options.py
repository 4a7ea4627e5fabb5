"""What the person who starts the app may set with ``--conf``, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.errors import InputError

CACHE_GB = 4.0
FEATURE_SHARE = 0.6
"""Of the budget, for what the network computed of the windows of recent images (57 MB for one of the fine stage); the
rest is for images and answers."""


@dataclass(frozen=True)
class AppOptions:
    """Options of the app; those of the server are in ``lib.server.options``.

    Attributes:
        modalities: of the models (conf ``modality``, several with commas); all that the weights cover where empty.
        kinds: of the models (conf ``models``, several with commas, see ``lib.configs.models``); all where empty.
        sessions_gb: GiB for images and answers.
        inference: keys of the bundle's inference config to replace.
        weights_dir: where newly trained weights are published (conf ``weights_dir``).
        auto_scoring: score after every start and every saved label (conf ``auto_scoring``).
    """

    modalities: tuple[str, ...]
    kinds: tuple[str, ...]
    sessions_gb: float
    weights_dir: Path
    auto_scoring: bool = False
    inference: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_conf(cls, conf: Mapping[str, str], app_dir: Path) -> AppOptions:
        """Read ``--conf modality MRI --conf models text,edit --conf cache_gb 4 --conf device cuda:0`` and the like.

        Corrections reuse the features of the image (``refinement_mode`` "cached"), which makes them several times
        faster and, with the shipped weights, no worse: mean DSC 0.695 on a held-out head against 0.693. The fine
        stage's windows lie at fixed places of the image (``fine_grid`` "image"), so that other words about it meet
        windows that are known.

        Args:
            conf: what ``--conf`` gave.
            app_dir: folder of the app; weights are published in its ``model`` folder by default.

        Raises:
            InputError: a budget that is no number of GiB, or neither true nor false.
        """
        cache = _number(conf, "cache_gb", CACHE_GB)
        inference: dict[str, Any] = {
            "feature_cache_gb": cache * FEATURE_SHARE,
            "refinement_mode": conf.get("refinement_mode") or "cached",
            "fine_grid": conf.get("fine_grid") or "image",
        }
        for key in ("device", "stages"):
            if conf.get(key):
                inference[key] = conf[key]
        if conf.get("memory_gb"):
            inference["memory_gb"] = _number(conf, "memory_gb", 0)
        return cls(
            modalities=_items(conf, "modality"),
            kinds=_items(conf, "models"),
            sessions_gb=cache * (1 - FEATURE_SHARE),
            weights_dir=Path(conf.get("weights_dir") or app_dir / "model").expanduser().resolve(),
            auto_scoring=_flag(conf, "auto_scoring"),
            inference=inference,
        )


def _items(conf: Mapping[str, str], key: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in conf.get(key, "").split(",") if item.strip())


def _flag(conf: Mapping[str, str], key: str) -> bool:
    text = str(conf.get(key, "false")).strip().lower()
    if text not in ("true", "false"):
        raise InputError(f"--conf {key} must be true or false, got {text!r}")
    return text == "true"


def _number(conf: Mapping[str, str], key: str, default: float) -> float:
    text = conf.get(key, str(default))
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise InputError(f"--conf {key} must be a number of GiB from 0 on, got {text!r}")
    return number
