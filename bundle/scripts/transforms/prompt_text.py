"""Turn the words of a request into targets and their query vectors.

A target's vector is that of its canonical sentence, which the bank holds, or (``query_text: "prompt"``) that of the
user's own sentence, for networks that were trained on free sentences. The own sentence is used where it stands for
that target alone and no spelling had to be corrected: the whole text if it asks for one target ("spleen seen on this
CT"), else the target's words in it ("spleen" out of "spleen, IVC and both kidneys"; a kidney is asked for by its
canonical sentence, as "both kidneys" would give the two the same vector). Sentences that the bank does not hold need
a text encoder.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from monai.transforms import Transform

from scripts.errors import InputError
from scripts.request import Request, as_texts, encode_request, make_request
from scripts.text.concepts import normalise_sentence

if TYPE_CHECKING:
    from scripts.text import EmbeddingBank, PromptParser, Target

logger = logging.getLogger(__name__)

QUERY_TEXTS = ("canonical", "prompt")
EXACT_MATCHES = ("name", "synonym")


class EncodePrompts(Transform):
    """Parse prompts and look up the query vectors.

    Args:
        parser: text to targets.
        bank: targets to vectors.
        modality: the study's modality where the words name none.
        trained: names of the structures the weights know; None for any.
        allow_untrained: ask the network for others too: it will answer, meaninglessly.
        query_text: which words are embedded: ``canonical`` (the target's name) or ``prompt`` (the user's own).

    Raises:
        ValueError: ``InputError`` for another ``query_text``.
    """

    def __init__(
        self,
        parser: PromptParser,
        bank: EmbeddingBank,
        modality: str | None = None,
        trained: Sequence[str] | None = None,
        allow_untrained: bool = False,
        query_text: str = "canonical",
    ) -> None:
        if query_text not in QUERY_TEXTS:
            raise InputError(f"query_text is one of {', '.join(QUERY_TEXTS)}, got {query_text!r}")
        self.parser = parser
        self.bank = bank
        self.modality = modality
        self.trained = None if trained is None else tuple(trained)
        self.allow_untrained = allow_untrained
        self.query_text = query_text

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
        return self._request(texts, *self._targets(texts, modality))

    def __call__(self, prompts: str | Sequence[str], modality: str | None = None) -> tuple[Request, torch.Tensor]:
        """Understand the words and look up their vectors.

        Returns:
            The request, and queries ``[N, L]`` float32 in its order.

        Raises:
            ValueError: see ``parse``; also where the bank lacks a vector.
        """
        texts = as_texts(prompts)
        targets, sentences = self._targets(texts, modality)
        try:
            request = self._request(texts, targets, sentences)
            return request, self.bank.lookup(sentences, request.modality)
        except ValueError as e:
            raise InputError(str(e)) from e

    def mirrored(self, request: Request) -> torch.Tensor:
        """Queries ``[N, L]`` of the targets' other sides, for mirrored images; a target without one keeps its own."""
        terminology = self.parser.terminology
        sentences = []
        for asked in request.targets:
            other = terminology.other_side(terminology.target(asked.name, asked.modality, asked.kind))
            sentences.append(asked.sentence if other is None else other.sentence)
        return self.bank.lookup(sentences, request.modality)

    def _targets(self, texts: Sequence[str], modality: str | None) -> tuple[list[Target], list[str]]:
        """Targets in the order first asked, and the sentence to embed for each."""
        found: dict[str, tuple[Target, str]] = {}
        for text in texts:
            targets = self.parser.parse(text, modality or self.modality)
            for target in targets:
                if target.key not in found:
                    found[target.key] = target, self._sentence(target, text if len(targets) == 1 else target.matched)
        foreign = self._untrained([target for target, _ in found.values()])
        if foreign and not self.allow_untrained:
            raise InputError(
                f"these weights were not trained for {', '.join(foreign)}; they know: {', '.join(self.trained or ())} "
                "(allow_untrained true asks them all the same)"
            )
        return [target for target, _ in found.values()], [sentence for _, sentence in found.values()]

    def _request(self, texts: Sequence[str], targets: Sequence[Target], sentences: Sequence[str]) -> Request:
        return make_request(texts, targets, sentences, untrained=self._untrained(targets))

    def _untrained(self, targets: Sequence[Target]) -> list[str]:
        """Names of the targets that the weights do not know."""
        known = {name.lower() for name in self.trained or ()}
        return [] if self.trained is None else [target.name for target in targets if target.name.lower() not in known]

    def _sentence(self, target: Target, own: str) -> str:
        """What to embed for a target: the user's ``own`` words where they may be used, else the canonical sentence."""
        if self.query_text == "canonical" or target.how not in EXACT_MATCHES:
            return target.sentence
        return normalise_sentence(own) if self._means_only(own, target) else target.sentence

    def _means_only(self, words: str, target: Target) -> bool:
        try:
            return self.parser.parse(words, target.modality) == [target]
        except ValueError:  # a part of a sentence need not make sense alone
            return False


class EncodePromptsd(Transform):
    """Dictionary version of ``EncodePrompts``.

    Reads the words at ``text_key`` (and the study's modality at ``modality_key``, if there) and adds the request and
    the queries. It needs no image, so it stands first in a pipeline and bad words cost nothing. A caller that knows
    nothing of words, as MONAI Label's own bundle app, has no such entry: all that the weights know is asked for.

    Args:
        parser: see ``EncodePrompts``.
        bank: see ``EncodePrompts``.
        modality: see ``EncodePrompts``.
        trained: see ``EncodePrompts``.
        allow_untrained: see ``EncodePrompts``.
        query_text: see ``EncodePrompts``.
        mirror: also add the queries of the targets' other sides, for ``MirrorInferer``.
        text_key: entry with the words.
        modality_key: entry with the study's modality.
        request_key: where the encoded ``Request`` goes.
        queries_key: where the vectors go.
        mirrored_key: where those of the other sides go.
    """

    def __init__(
        self,
        parser: PromptParser,
        bank: EmbeddingBank,
        modality: str | None = None,
        trained: Sequence[str] | None = None,
        allow_untrained: bool = False,
        query_text: str = "canonical",
        mirror: bool = False,
        text_key: str = "text",
        modality_key: str = "modality",
        request_key: str = "request",
        queries_key: str = "queries",
        mirrored_key: str = "mirrored_queries",
    ) -> None:
        self.transform = EncodePrompts(parser, bank, modality, trained, allow_untrained, query_text)
        self.text_key = text_key
        self.modality_key = modality_key
        self.request_key = request_key
        self.queries_key = queries_key
        self.mirrored_key = mirrored_key
        self.mirror = mirror

    def check(self, cases: Sequence[Mapping[str, Any]]) -> list[Request]:
        """Understand the words of many cases, log how, and make sure of their vectors, before any image is read.

        Raises:
            ValueError: see ``EncodePrompts``.
        """
        requests = []
        for case in cases:
            request, _ = self.transform(case[self.text_key], case.get(self.modality_key))
            for target in request.targets:
                logger.info(
                    "understood '%s' as %s (%s, %s), asked for as '%s'",
                    target.matched, target.name, target.modality, target.how, target.sentence,
                )  # fmt: skip
            requests.append(request)
        return requests

    def default(self) -> dict[str, Any]:
        """Request and queries of all that the weights know, by the names of ``TwoStageInferer``'s arguments.

        Raises:
            ValueError: ``InputError`` where it is not known what they know.
        """
        request, queries = self.transform(self.transform.trained or ())
        arguments = {"request": encode_request(request), "queries": queries}
        return {**arguments, "mirrored_queries": self.transform.mirrored(request)} if self.mirror else arguments

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with request and queries ``[N, L]`` added and the words removed."""
        d = dict(data)
        words = d.pop(self.text_key, self.transform.trained or ())
        request, queries = self.transform(words, d.pop(self.modality_key, None))
        untrained = [target.name for target in request.targets if not target.trained]
        if untrained:
            logger.warning("the weights were never trained for %s: the answer means nothing", ", ".join(untrained))
        d[self.request_key], d[self.queries_key] = encode_request(request), queries
        if self.mirror:
            d[self.mirrored_key] = self.transform.mirrored(request)
        return d
