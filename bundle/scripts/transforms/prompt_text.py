"""Turn the words of a request into targets and their query vectors."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from monai.transforms import Transform

from scripts.errors import InputError
from scripts.request import Request, as_texts, encode_request, make_request

if TYPE_CHECKING:
    from scripts.text import EmbeddingBank, PromptParser, Target

logger = logging.getLogger(__name__)


class EncodePrompts(Transform):
    """Parse prompts and look up the query vectors.

    Args:
        parser: text to targets.
        bank: targets to vectors.
        modality: the study's modality where the words name none.
        trained: names of the structures the weights know; None for any.
        allow_untrained: ask the network for others too: it will answer, meaninglessly.
    """

    def __init__(
        self,
        parser: PromptParser,
        bank: EmbeddingBank,
        modality: str | None = None,
        trained: Sequence[str] | None = None,
        allow_untrained: bool = False,
    ) -> None:
        self.parser = parser
        self.bank = bank
        self.modality = modality
        self.trained = None if trained is None else tuple(trained)
        self.allow_untrained = allow_untrained

    def parse(self, prompts: str | Sequence[str], modality: str | None = None) -> Request:
        """Understand the words without embedding them: quick enough to run before anything else.

        Args:
            prompts: one text or several.
            modality: overrides the constructor's.

        Raises:
            ValueError: ``InputError`` where nothing is asked for or the weights do not know it;
                ``UnknownPromptError``, with suggestions, for text that is not understood.
        """
        texts = as_texts(prompts)
        return make_request(texts, self._targets(texts, modality))

    def __call__(self, prompts: str | Sequence[str], modality: str | None = None) -> tuple[Request, torch.Tensor]:
        """Understand the words and look up their vectors.

        Returns:
            The request, and queries ``[N, L]`` float32 in its order.

        Raises:
            ValueError: see ``parse``; also where the bank lacks a vector.
        """
        texts = as_texts(prompts)
        targets = self._targets(texts, modality)
        try:
            return make_request(texts, targets), self.bank.lookup(targets)
        except ValueError as e:
            raise InputError(str(e)) from e

    def _targets(self, texts: Sequence[str], modality: str | None) -> list[Target]:
        found: dict[str, Target] = {}
        for text in texts:
            for target in self.parser.parse(text, modality or self.modality):
                found.setdefault(target.key, target)
        if self.trained is not None and not self.allow_untrained:
            known = {name.lower() for name in self.trained}
            foreign = [target.name for target in found.values() if target.name.lower() not in known]
            if foreign:
                raise InputError(
                    f"these weights were not trained for {', '.join(foreign)}; they know: {', '.join(self.trained)} "
                    "(allow_untrained true asks them all the same)"
                )
        return list(found.values())


class EncodePromptsd(Transform):
    """Dictionary version of ``EncodePrompts``.

    Reads the words at ``text_key`` (and the study's modality at ``modality_key``, if there) and adds the request and
    the queries. It needs no image, so it stands first in a pipeline and bad words cost nothing.

    Args:
        parser: see ``EncodePrompts``.
        bank: see ``EncodePrompts``.
        modality: see ``EncodePrompts``.
        trained: see ``EncodePrompts``.
        allow_untrained: see ``EncodePrompts``.
        text_key: entry with the words.
        modality_key: entry with the study's modality.
        request_key: where the encoded ``Request`` goes.
        queries_key: where the vectors go.
    """

    def __init__(
        self,
        parser: PromptParser,
        bank: EmbeddingBank,
        modality: str | None = None,
        trained: Sequence[str] | None = None,
        allow_untrained: bool = False,
        text_key: str = "text",
        modality_key: str = "modality",
        request_key: str = "request",
        queries_key: str = "queries",
    ) -> None:
        self.transform = EncodePrompts(parser, bank, modality, trained, allow_untrained)
        self.text_key = text_key
        self.modality_key = modality_key
        self.request_key = request_key
        self.queries_key = queries_key

    def check(self, cases: Sequence[Mapping[str, Any]]) -> list[Request]:
        """Understand the words of many cases and log how, before any image is read.

        Raises:
            ValueError: see ``EncodePrompts.parse``.
        """
        requests = [self.transform.parse(case[self.text_key], case.get(self.modality_key)) for case in cases]
        for request in requests:
            for target in request.targets:
                logger.info("understood '%s' as %s (%s, %s)", target.matched, target.name, target.modality, target.how)
        return requests

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with request and queries ``[N, L]`` added and the words removed."""
        d = dict(data)
        request, queries = self.transform(d.pop(self.text_key), d.pop(self.modality_key, None))
        d[self.request_key], d[self.queries_key] = encode_request(request), queries
        return d
