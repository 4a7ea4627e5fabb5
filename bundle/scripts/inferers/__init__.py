"""Inferers: windows whose prompts travel with the image, refinement by masked prompts, mixed precision."""

from scripts.inferers.autocast import AutocastInferer
from scripts.inferers.batch import PrepareRequest
from scripts.inferers.refinement import RefinementInferer
from scripts.inferers.sliding_window import PromptWindowInferer

__all__ = ["AutocastInferer", "PrepareRequest", "PromptWindowInferer", "RefinementInferer"]
