"""Text: terminology, prompt parsing, sentence encoding and saved prompt vectors.

The names that need torch are imported on first use, so that parsing a prompt stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .concepts import Code, Codes, Concept, Policy, Target, normalise_sentence
from .prompt_parser import PromptParser, UnknownPromptError
from .terminology import Terminology

if TYPE_CHECKING:
    from .embedding_bank import EmbeddingBank
    from .text_encoder import TextEncoder, TextHead

_LAZY = {"EmbeddingBank": "embedding_bank", "TextEncoder": "text_encoder", "TextHead": "text_encoder"}

__all__ = [
    "Code",
    "Codes",
    "Concept",
    "EmbeddingBank",
    "Policy",
    "PromptParser",
    "Target",
    "Terminology",
    "TextEncoder",
    "TextHead",
    "UnknownPromptError",
    "normalise_sentence",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
