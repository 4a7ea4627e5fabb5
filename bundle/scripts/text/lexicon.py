"""Words of a prompt: cut a sentence into tokens, bring each word to its base form, correct misspellings.

A base form makes "renal", "kidneys" and "Kidney" one word. The rules (spelling variants, irregular plurals, words that
say nothing about the target, medical words that are no target) are data: ``language`` in the terminology.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from rapidfuzz import process
from rapidfuzz.distance import OSA

JOIN, STOP, SIDE, SKIP, PREPOSITION, WORD = "join", "stop", "side", "skip", "preposition", "word"

# Prepositions that tie the parts of one name together ("cyst in the kidney"); all others are part of a term or end it.
NEUTRAL = frozenset(("in", "within", "on", "at", "inside", "from"))

_PIECE = re.compile(r"(?P<word>[A-Za-z0-9]+(?:['\u2019][A-Za-z]+)*)|(?P<mark>[^\sA-Za-z0-9_]|\n)")
_CAMEL = re.compile(r"(?<=[a-z]{2})(?=[A-Z][a-z]{2})|(?<=[A-Za-z]{3})(?=[0-9])")
_JOIN_MARKS = frozenset(",;/+&|\n")
_STOP_MARKS = frozenset(".!?:")
_DASHES = frozenset("-\u2010\u2011\u2012\u2013\u2014~")
_MAX_CORRECTIONS = 12  # distinct unknown words looked up per prompt: bounds the time a hostile text can take


@dataclass(frozen=True)
class Token:
    """A word or separator of the prompt; ``start`` and ``end`` are its place in the text."""

    text: str
    """As written."""
    raw: str
    """Lower case, without accents and possessive endings; corrected where misspelt."""
    form: str
    """Base form, the unit of comparison."""
    kind: str
    start: int
    end: int
    similarity: float = 1.0
    """Below 1 where the word was corrected."""

    @property
    def counts(self) -> bool:
        """Whether the word is a part of a term: articles and the like are not."""
        return self.kind != SKIP and not (self.kind == PREPOSITION and self.raw in NEUTRAL)


@dataclass(frozen=True)
class Term:
    """A known phrase as a bag of base forms (``key``) and of words (``raw``), with and without its side words."""

    key: tuple[str, ...]
    key_without_side: tuple[str, ...]
    raw: tuple[str, ...]
    raw_without_side: tuple[str, ...]

    @property
    def says_side(self) -> bool:
        return len(self.key) > len(self.key_without_side)


class Lexicon:
    """Word knowledge shared by the terms and the prompts.

    Args:
        language: the ``language`` section of the terminology.
        terms: every phrase a prompt may name a target by; their words can be the goal of a correction.
        keywords: further known words (modality keywords).
    """

    def __init__(self, language: Mapping[str, Any], terms: Iterable[str], keywords: Iterable[str] = ()) -> None:
        self._variants: dict[str, str] = dict(language.get("variants", {}))
        self._plurals: dict[str, str] = dict(language.get("plurals", {}))
        self.sides: dict[str, str] = dict(language.get("sides", {}))
        self._separators = frozenset(language.get("separators", ()))
        self._skip = frozenset(language.get("skip", ()))
        self.location = frozenset(language.get("location", ()))
        self.exclusions = frozenset(language.get("exclusions", ()))
        self._prepositions = frozenset(language.get("prepositions", ())) | self.location | self.exclusions
        self._verb_suffixes = tuple(language.get("verb_suffixes", ()))
        self._noun_suffixes = tuple(language.get("noun_suffixes", ()))
        self._pathology_suffixes = tuple(language.get("pathology_suffixes", ()))
        self._plain = frozenset(language.get("plain_words", ()))
        self._carriers = frozenset(language.get("carriers", ()))
        self.sequences = [list(words) for words in language.get("sequences", ())]
        self._forms: dict[str, str] = {}
        self._terms: dict[str, Term] = {}
        raw_terms = {match["word"].lower() for term in terms for match in _PIECE.finditer(term) if match["word"]}
        raw_terms = {part for word in raw_terms for part in (word, _possessive(word))}
        self._term_words = sorted(word for word in raw_terms if len(word) > 2 and word.isalpha())
        self.term_forms = {self.form(word) for word in raw_terms}
        others = language.get("other_terms", ())
        self.other_phrases = [text for text in others if " " in text]
        self._other_forms = {self.form(word) for word in others if " " not in word}
        self._carrier_forms = {self.form(word) for word in self._carriers}
        goals = raw_terms | self.term_forms | self._carriers | {word for text in others for word in text.split()}
        goals |= set(self._variants) | set(self._plurals) | set(self.sides) | set(keywords)
        self._goals = sorted(word for word in goals if len(word) >= 5 and word.isalpha())
        self._known = goals | self._plain | self._prepositions | self._skip | self._separators

    def form(self, raw: str) -> str:
        """Base form of a lower-case word: variant spelling, singular, noun of an adjective."""
        known = self._forms.get(raw)
        if known is None:
            known = self._variants.get(raw) or self._singular(raw)
            known = self._variants.get(known, known)
            self._forms[raw] = known
        return known

    def _singular(self, word: str) -> str:
        if word in self._plurals:
            return self._plurals[word]
        if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
            return word
        if word.endswith("ies") and len(word) > 4:
            return word[:-3] + "y"
        if word.endswith(("sses", "shes", "ches", "xes", "zes", "uses", "ases", "ises")):
            return word[:-2]
        return word[:-1]

    def is_known(self, raw: str) -> bool:
        """Whether a word is in the vocabulary, as it stands or in its base form."""
        return raw in self._known or self.form(raw) in self._known or not raw.isalpha()

    def is_adjective(self, raw: str) -> bool:
        """Whether a word stands for another one ("renal" for kidney)."""
        return raw in self._variants

    def role(self, token: Token) -> str:
        """What an unmatched word means for its neighbours.

        Returns:
            ``carrier``: nothing ("segmentation"); ``other``: a medical word that is no target ("stones"); ``vague``: an
            unknown noun that by its ending may be one of either ("quantitation", "herniation"); ``unknown``.
        """
        raw, form = token.raw, token.form
        if raw in self._carriers or raw.isdigit() or len(raw) == 1:
            return "carrier"
        if form in self.term_forms or form in self._other_forms:
            return "other"
        if form in self._carrier_forms:
            return "carrier"
        if any(char.isdigit() for char in raw) or (len(raw) > 6 and raw.endswith(self._pathology_suffixes)):
            return "other"
        if raw.endswith(self._verb_suffixes) and len(raw) > 4:
            return "carrier"
        return "vague" if raw.endswith(self._noun_suffixes) and len(raw) > 5 else "unknown"

    def resembles_term(self, raw: str) -> bool:
        """Whether an unknown word is one slip away from a word of a term, too short to be corrected ("gal")."""
        near = process.extractOne(raw, self._term_words, scorer=OSA.distance, score_cutoff=1)
        return near is not None

    def tokens(self, text: str, correct: bool = True) -> list[Token]:
        """Cut a text into tokens; with ``correct``, unknown words become the one known word they nearly are."""
        # One character in, one out, so that places in the folded text are places in the prompt.
        folded = text if text.isascii() else "".join(unicodedata.normalize("NFKD", char)[0] for char in text)
        found: list[Token] = []
        for piece in _PIECE.finditer(folded):
            if piece["mark"]:
                self._add_mark(found, folded, piece.group(), piece.start(), text)
                continue
            start = piece.start()
            cuts = [0, *(cut.start() for cut in _CAMEL.finditer(piece.group())), len(piece.group())]
            for begin, end in pairwise(cuts):
                written = piece.group()[begin:end]
                found.append(self._word(text[start + begin : start + end], written.lower(), start + begin, start + end))
        found = self._expand_sequences(found)
        return self._correct(found) if correct else found

    def term(self, text: str) -> Term:
        """A known phrase, uncorrected; remembered, as modalities share most phrases."""
        known = self._terms.get(text)
        if known is None:
            if text.replace(" ", "").isalpha() and text.isascii():  # most terms, and many times faster
                tokens = [self._word(word, word, 0, 0) for word in text.lower().split()]
            else:
                tokens = self.tokens(text, correct=False)
            counted = [token for token in tokens if token.counts]
            sideless = [token for token in counted if token.kind != SIDE]
            known = Term(
                key=bag(counted),
                key_without_side=bag(sideless),
                raw=bag(counted, raw=True),
                raw_without_side=bag(sideless, raw=True),
            )
            self._terms[text] = known
        return known

    def _add_mark(self, found: list[Token], folded: str, mark: str, start: int, text: str) -> None:
        before, after = folded[start - 1 : start], folded[start + 1 : start + 2]
        if mark in _DASHES:
            kind = "dash"
        elif mark in _JOIN_MARKS:
            kind = JOIN
        elif mark in _STOP_MARKS:
            # "Lt. adrenal", "kidney.left": no end of a sentence
            inside = bool(before.strip()) and bool(after.strip()) and after.isalnum()
            abbreviation = mark == "." and found and found[-1].kind == SIDE and len(found[-1].raw) < 4
            if inside or abbreviation:
                return
            kind = STOP
        else:
            return
        spaced = kind == "dash" and before.isspace() and after.isspace()
        form = "&" if kind == JOIN or spaced else mark
        found.append(Token(text[start], mark, form, kind, start, start + 1))

    def _word(self, written: str, lower: str, start: int, end: int) -> Token:
        raw = _possessive(lower)
        if raw in self.sides:
            return Token(written, raw, self.sides[raw], SIDE, start, end)
        kind, form = WORD, self.form(raw)
        if raw in self._separators:
            kind, form = JOIN, "&"
        elif raw in self._skip:
            kind = SKIP
        elif raw in self._prepositions:
            kind, form = PREPOSITION, raw
        return Token(written, raw, form, kind, start, end)

    def _expand_sequences(self, tokens: list[Token]) -> list[Token]:
        """Make L1, L2, L3 of "L1-L3" and "L1 to L3"; other dashes go, or separate where spaces surround them."""
        result: list[Token] = []
        index = 0
        while index < len(tokens):
            token = tokens[index]
            sequence = next((words for words in self.sequences if token.form in words), None)
            step = self._range_end(tokens, index, sequence) if sequence is not None else None
            if sequence is not None and step is not None:
                last, word = step
                low, high = sorted((sequence.index(token.form), sequence.index(word)))
                for level in sequence[low : high + 1]:
                    if level != sequence[low]:
                        result.append(Token(",", ",", "&", JOIN, token.start, tokens[last].end))
                    result.append(Token(level, level, level, WORD, token.start, tokens[last].end))
                index = last + 1
                continue
            if token.kind == "dash":
                if token.form == "&":
                    result.append(replace(token, kind=JOIN))
            else:
                result.append(token)
            index += 1
        return result

    @staticmethod
    def _range_end(tokens: list[Token], index: int, sequence: list[str]) -> tuple[int, str] | None:
        if index + 2 >= len(tokens):
            return None
        link, end = tokens[index + 1], tokens[index + 2]
        if link.kind != "dash" and link.raw not in ("to", "through", "until", "till", "thru", "bis"):
            return None
        # "L1-3": the second level without its letter
        for word in (end.form, tokens[index].form.rstrip("0123456789") + end.form):
            if word in sequence:
                return index + 2, word
        return None

    def _correct(self, tokens: list[Token]) -> list[Token]:
        fixed: dict[str, tuple[str, float] | None] = {}
        result = []
        for token in tokens:
            if token.kind != WORD or self.is_known(token.raw) or not 4 <= len(token.raw) <= 32:
                result.append(token)
                continue
            if token.raw not in fixed:
                fixed[token.raw] = self.nearest(token.raw) if len(fixed) < _MAX_CORRECTIONS else None
            correction = fixed[token.raw]
            if correction is None:
                result.append(token)
                continue
            word = self._word(token.text, correction[0], token.start, token.end)
            result.append(replace(word, similarity=correction[1]))
        return result

    def nearest(self, raw: str) -> tuple[str, float] | None:
        """The known word that ``raw`` is a misspelling of, with the similarity; None where there is none, or a doubt.

        One slip (letter added, dropped, changed, or two exchanged) in a word of 5 to 8 letters, two in a longer one,
        the first letter right. Words of 4 letters only when one letter was left out. Where the nearest words mean
        different things nothing is corrected.
        """
        limit = 2 if len(raw) >= 9 else 1
        found = process.extract(raw, self._goals, scorer=OSA.distance, score_cutoff=limit, limit=8)
        near = [(word, int(distance)) for word, distance, _ in found if word[0] == raw[0]]
        if len(raw) == 4:
            near = [(word, distance) for word, distance in near if len(word) == 5 and word[-1] == raw[-1]]
        if not near:
            return None
        best = min(distance for _, distance in near)
        words = [word for word, distance in near if distance == best]
        if len({self.sides.get(word, self.form(word)) for word in words}) > 1:
            return None
        return words[0], 1.0 - best / max(len(raw), len(words[0]))


def bag(tokens: Sequence[Token], raw: bool = False) -> tuple[str, ...]:
    """Base forms (or words) of tokens, sorted, so that word order does not matter; as they stand around an "and"."""
    words = [token.raw if raw else token.form for token in tokens]
    return tuple(words if any(token.kind == JOIN for token in tokens) else sorted(words))


def _possessive(word: str) -> str:
    """``word`` without an ending after an apostrophe."""
    return word if word.isalnum() else re.split(r"['\u2019]", word, maxsplit=1)[0]
