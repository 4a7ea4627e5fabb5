"""Inferers: two stages, windows that carry their prompts, refinement, mirroring, precision, kept features."""

from scripts.inferers.autocast import AutocastInferer
from scripts.inferers.batch import PrepareRequest
from scripts.inferers.feature_cache import FeatureCache
from scripts.inferers.mirroring import MirrorInferer
from scripts.inferers.refinement import RefinementInferer
from scripts.inferers.sliding_window import PromptWindowInferer
from scripts.inferers.stage import Stage
from scripts.inferers.two_stage import TwoStageInferer

__all__ = [
    "AutocastInferer",
    "FeatureCache",
    "MirrorInferer",
    "PrepareRequest",
    "PromptWindowInferer",
    "RefinementInferer",
    "Stage",
    "TwoStageInferer",
]
