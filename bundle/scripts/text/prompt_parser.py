"""Free text to targets: which structures a sentence asks for, in which modality, and what it could not mean.

The parser resolves what people write and refuses what it does not know: a phrase that names something else than a
known target ("kidney stones", "hepatic artery") raises :class:`UnknownPromptError` with the nearest names.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from .concepts import Target
from .lexicon import SIDE, WORD, Lexicon
from .prompt_reader import PromptReader, Reading
from .term_index import TermIndex
from .terminology import Terminology
from .tokenizer import Token, Tokenizer

MAX_CHARACTERS = 2_000  # all targets of a region by name fit; a longer text is no prompt
MAX_WORDS = 500
_SHORT = 60  # words up to which a refused text is also read in the modalities that were not asked for


class UnknownPromptError(ValueError):
    """The text asks for something that is no known target; ``suggestions`` lists the nearest names."""

    def __init__(self, message: str, suggestions: Sequence[str] = ()) -> None:
        self.suggestions = list(suggestions)
        hint = f"; did you mean: {', '.join(self.suggestions)}?" if self.suggestions else ""
        super().__init__(message + hint)


class PromptParser:
    """Resolve sentences to targets.

    Args:
        terminology: the known targets and the language; the bundle's own when None.
    """

    def __init__(self, terminology: Terminology | None = None) -> None:
        self.terminology = terminology if terminology is not None else Terminology.load()
        collections = self.terminology.collections
        terms = [text for concept in self.terminology.concepts for text in (concept.name, *concept.synonyms)]
        terms += [text for collection in collections for text in (collection.name, *collection.synonyms)]
        modalities = self.terminology.modalities
        self._cased = {word: name for name, item in modalities.items() for word in item.cased_keywords}
        self._keywords: dict[str, list[tuple[tuple[str, ...], str]]] = {}  # by first word
        for name, item in modalities.items():
            for text in item.keywords:
                phrase = tuple(text.lower().replace("-", " ").split())
                self._keywords.setdefault(phrase[0], []).append((phrase, name))
        words = [word for found in self._keywords.values() for phrase, _ in found for word in phrase]
        words += [word.lower() for item in modalities.values() for word in (*item.weak_keywords, *item.cased_keywords)]
        self.lexicon = Lexicon(self.terminology.language, terms, words)
        self._tokenizer = Tokenizer(self.terminology.language, self.lexicon)
        self._indices = {name: TermIndex(self.terminology, self._tokenizer, name) for name in modalities}

    def parse(self, text: str, modality: str | None = None) -> list[Target]:
        """Targets that ``text`` asks for, in the order first asked, each once; a pair as left, right.

        Args:
            text: a word, a phrase, a sentence or a list of them in one string.
            modality: what the study says ("CT", "MRI", ...). A modality named in the text wins over it. With neither,
                the first modality (in index order) in which the whole text makes sense is taken.

        Returns:
            At least one target, with ``matched``, ``how`` and ``score`` filled in.

        Raises:
            UnknownPromptError: the text, or a part of it, is no known target.
            ValueError: ``modality`` is not a known one.
        """
        context = self.terminology.modality(modality).name if modality is not None else None
        if not isinstance(text, str):
            raise UnknownPromptError(f"prompt: a text is wanted, got {type(text).__name__}")
        if not any(char.isalpha() for char in text):
            raise UnknownPromptError(f"prompt: {text[:40]!r} names nothing; give the name of a structure")
        if len(text) > MAX_CHARACTERS:
            message = (
                f"prompt: {len(text)} characters are too many, at most {MAX_CHARACTERS} are read; give several prompts"
            )
            raise UnknownPromptError(message)
        tokens = self._tokenizer.tokens(text)
        if len(tokens) > MAX_WORDS:
            raise UnknownPromptError(f"prompt: {len(tokens)} words are too many, at most {MAX_WORDS} are read")
        named, spoken = self._modalities(tokens)
        order = named or ([context] if context else self._by_weak_keyword(tokens))
        readings = []
        for name in order:
            reading = self._read(text, tokens, name, spoken)
            if reading.targets and not reading.failures:
                return reading.targets
            readings.append(reading)
        raise self._refusal(text, tokens, order, readings, spoken)

    def _modalities(self, tokens: Sequence[Token]) -> tuple[list[str], frozenset[int]]:
        """Modalities named in the text, most often named first, and the places of the words that do so."""
        places: dict[str, set[int]] = {}
        spoken: set[int] = set()
        raws = [token.raw for token in tokens]
        for start, token in enumerate(tokens):
            for phrase, name in self._keywords.get(token.raw, ()):
                if tuple(raws[start : start + len(phrase)]) == phrase:
                    places.setdefault(name, set()).add(start)
                    spoken |= set(range(start, start + len(phrase)))
            if token.text in self._cased:
                places.setdefault(self._cased[token.text], set()).add(start)
                spoken.add(start)
        named = sorted(places, key=lambda name: (-len(places[name]), min(places[name])))
        return named, frozenset(spoken)

    def _by_weak_keyword(self, tokens: Sequence[Token]) -> list[str]:
        raws = {token.raw for token in tokens}
        names = list(self.terminology.modalities)
        return sorted(names, key=lambda name: raws.isdisjoint(self.terminology.modalities[name].weak_keywords))

    def _read(self, text: str, tokens: Sequence[Token], modality: str, spoken: frozenset[int]) -> Reading:
        context = frozenset(self.terminology.modalities[modality].context)
        return PromptReader(text, tokens, self._indices[modality], self.lexicon, spoken, context).read()

    def _refusal(
        self,
        text: str,
        tokens: Sequence[Token],
        order: Sequence[str],
        readings: Sequence[Reading],
        spoken: frozenset[int],
    ) -> UnknownPromptError:
        """The error for a text that makes no sense in any modality of ``order``; names of the first one lead."""
        shown = " ".join(text.split())
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        wanted = " or ".join(order)
        near = self._nearest(tokens, order[0])
        found = self._known_elsewhere(text, tokens, order, spoken)
        if found:
            names = [target.name for rank in zip_longest(*found.values()) for target in rank if target is not None]
            message = f"prompt: {shown!r} is known for {', '.join(found)}, not for {wanted}"
            return UnknownPromptError(message, _distinct([*near[:3], *_distinct(names)[:4], *near], 7))
        failed = _distinct(readings[0].failures, 3)
        part = f" ({'; '.join(failed)})" if failed else ""
        related = [target.name for reading in readings for target in reading.related]
        return UnknownPromptError(
            f"prompt: {shown!r} is no known target of {wanted}{part}", _distinct([*_distinct(related)[:4], *near], 6)
        )

    def _known_elsewhere(
        self, text: str, tokens: Sequence[Token], order: Sequence[str], spoken: frozenset[int]
    ) -> dict[str, list[Target]]:
        """What the text means in the modalities that were not asked for; nothing is looked up for a long text."""
        if len(tokens) > _SHORT:
            return {}
        others = [name for name in self.terminology.modalities if name not in order]
        readings = {name: self._read(text, tokens, name, spoken) for name in others}
        return {name: item.targets for name, item in readings.items() if item.targets and not item.failures}

    def _nearest(self, tokens: Sequence[Token], modality: str) -> list[str]:
        words = [token.form for token in tokens if token.kind == SIDE or self._says_something(token)]
        return self.terminology.nearest_names(" ".join(words[:12]), modality)

    def _says_something(self, token: Token) -> bool:
        if token.kind != WORD:
            return False
        role = self.lexicon.role(token.raw, token.form)
        return token.form in self.lexicon.term_forms or role not in ("carrier", "adjective")


def _distinct(names: Sequence[str], limit: int | None = None) -> list[str]:
    """The first names, each once."""
    return list(dict.fromkeys(names))[:limit]
