"""Cut a text into tokens: words, side words, separators and prepositions, each with its place in the text.

The cutting is blind to what is asked for; the :class:`~.lexicon.Lexicon` says what each word is. Marks, dashes, fixed
phrases ("as well as"), compounds ("urine-filled") and sequences ("L1-L3") are resolved here, misspellings last.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from .lexicon import JOIN, PREPOSITION, SIDE, SKIP, STOP, WORD, Lexicon, possessive
from .notation import plain_words

# Prepositions that tie the parts of one name together ("cyst in the kidney"); all others are part of a term or end it.
NEUTRAL = frozenset(("in", "within", "on", "at", "inside", "from"))

_PIECE = re.compile(
    r"(?P<initials>(?<![A-Za-z0-9])(?:[A-Za-z]\.){2,}(?:[A-Za-z](?![A-Za-z]))?)"  # I.V.C.
    r"|(?P<word>[A-Za-z0-9]+(?:['\u2019][A-Za-z]+)*)|(?P<mark>[^\sA-Za-z0-9_]|\n)"
)
_CAMEL = re.compile(r"(?<=[a-z]{2})(?=[A-Z][a-z]{2})|(?<=[A-Za-z]{3})(?=[0-9])")
_JOIN_MARKS = frozenset(",;/+&|\n\u2022\u00b7\u3001\uff0c")
_STOP_MARKS = frozenset(".!?:")
_DASHES = frozenset("-\u2010\u2011\u2012\u2013\u2014\u2212~")
_RANGE_WORDS = frozenset(("to", "through", "thru", "until", "till", "bis"))
_SPELT_OUT = {"æ": "ae", "œ": "oe", "ß": "ss", "ø": "o", "ł": "l", "α": "alpha", "β": "beta", "γ": "gamma"}
_MAX_EXPANDED = 600  # words from which on no range is written out any more: more are refused anyhow
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


class Tokenizer:
    """Cuts prompts and terms.

    Args:
        language: the ``language`` section of the terminology.
        lexicon: what the words are.
    """

    def __init__(self, language: Mapping[str, Any], lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self._sequences = [list(words) for words in language.get("sequences", ())]
        self._levels = {word for words in self._sequences for word in words}
        self._level_letters = {word.rstrip("0123456789") for word in self._levels}
        self._compounds = frozenset(language.get("compounds", ()))
        self._phrases: dict[str, list[tuple[tuple[str, ...], str]]] = {}  # by first word, longest first
        for text, meaning in sorted(language.get("phrases", {}).items(), key=lambda item: -len(item[0])):
            words = tuple(text.split())
            self._phrases.setdefault(words[0], []).append((words, meaning))
        self._terms: dict[str, Term] = {}

    def tokens(self, text: str, correct: bool = True) -> list[Token]:
        """Cut a text into tokens; with ``correct``, unknown words become the one known word they nearly are."""
        found = self._drop_compounds(self._join_phrases(self._join_levels(self._cut(text))))
        found = self._complete_levels(self._resolve_dashes(found))
        return self._correct(found) if correct else found

    def term(self, text: str) -> Term:
        """A known phrase, uncorrected; remembered, as modalities share most phrases."""
        known = self._terms.get(text)
        if known is None:
            if text.replace(" ", "").isalpha() and text.isascii():  # most terms, and many times faster
                tokens = self._join_phrases([self._word(word, word, 0, 0) for word in text.lower().split()])
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

    def _cut(self, text: str) -> list[Token]:
        folded, places = _fold(text)
        found: list[Token] = []
        shorthand = plain_words(folded)
        end = 0
        for piece in _PIECE.finditer(folded):
            while shorthand and shorthand[0][0] <= piece.start():
                start, stop, word = shorthand.pop(0)
                first, last = places[start], places[stop - 1] + 1
                found.append(self._word(text[first:last], word, first, last))
                end = stop
            if piece.start() < end:
                continue
            if piece["mark"]:
                self._add_mark(found, folded, piece.start(), places[piece.start()])
                continue
            initials = piece["initials"]
            if initials:
                written = initials.replace(".", "")
                found.append(self._word(written, written.lower(), places[piece.start()], places[piece.end() - 1] + 1))
                continue
            cuts = [0, *(cut.start() for cut in _CAMEL.finditer(piece.group())), len(piece.group())]
            for begin, end in pairwise(cuts):
                written = piece.group()[begin:end]
                first, last = places[piece.start() + begin], places[piece.start() + end - 1]
                found.append(self._word(text[first : last + 1], written.lower(), first, last + 1))
        return found

    @staticmethod
    def _add_mark(found: list[Token], folded: str, at: int, place: int) -> None:
        mark, before, after = folded[at], folded[at - 1 : at], folded[at + 1 : at + 2]
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
        found.append(Token(mark, mark, form, kind, place, place + 1))

    def _word(self, written: str, lower: str, start: int, end: int) -> Token:
        raw = possessive(lower)
        kind, form = self.lexicon.kind_and_form(raw)
        return Token(written, raw, form, kind, start, end)

    def _join_levels(self, tokens: list[Token]) -> list[Token]:
        """Make one word of "L 3" and "L-3"; "T 1 weighted" stays as it is."""
        result: list[Token] = []
        for place, token in enumerate(tokens):
            back = 2 if result and result[-1].kind == "dash" else 1
            letter = result[-back] if len(result) >= back else None
            if letter is not None and letter.raw in self._level_letters and token.start - letter.end <= 1:
                word = letter.raw + token.raw
                following = tokens[place + 1].raw if place + 1 < len(tokens) else ""
                if token.raw.isdigit() and word in self._levels and not following.startswith("w"):
                    result[-back:] = [Token(letter.text + token.text, word, word, WORD, letter.start, token.end)]
                    continue
            result.append(token)
        return result

    def _complete_levels(self, tokens: list[Token]) -> list[Token]:
        """Give the letter of a level to the numbers listed behind it ("L4/5", "T5, 6 and 7")."""
        result: list[Token] = []
        for place, token in enumerate(tokens):
            if token.raw.isdigit() and len(result) > 1 and result[-1].kind == JOIN and result[-2].form in self._levels:
                word = result[-2].form.rstrip("0123456789") + token.raw
                ends = place + 1 == len(tokens) or tokens[place + 1].kind != WORD
                if word in self._levels and (ends or tokens[place + 1].form in ("vertebra", "level", "body")):
                    token = replace(token, raw=word, form=word)
            result.append(token)
        return result

    def _join_phrases(self, tokens: list[Token]) -> list[Token]:
        """Make one token of a fixed phrase: "as well as" joins, "anterior to" is a place, "brain-stem" one word."""
        result: list[Token] = []
        index = 0
        while index < len(tokens):
            for words, meaning in self._phrases.get(tokens[index].raw, ()):
                stop = _phrase_end(tokens, index, words)
                if stop:
                    start, end = tokens[index].start, tokens[stop - 1].end
                    result.append(self._word(" ".join(words), meaning, start, end))
                    index = stop
                    break
            else:
                result.append(tokens[index])
                index += 1
        return result

    def _drop_compounds(self, tokens: list[Token]) -> list[Token]:
        """A compound such as "urine-filled" only describes, whatever its first word; a dash has to tie it."""
        result: list[Token] = []
        for token in tokens:
            tied = len(result) > 1 and result[-1].kind == "dash" and result[-2].kind == WORD
            if tied and token.raw in self._compounds and token.start == result[-1].end:
                first = result[-2]
                result[-2:] = [Token(first.text, first.raw, first.raw, SKIP, first.start, token.end)]
            else:
                result.append(token)
        return result

    def _resolve_dashes(self, tokens: list[Token]) -> list[Token]:
        """Make L1, L2, L3 of "L1-L3" and "L1 to L3"; other dashes go, or separate where spaces surround them."""
        result: list[Token] = []
        index = 0
        while index < len(tokens):
            token = tokens[index]
            levels, stop = self._range(tokens, index) if len(result) < _MAX_EXPANDED else ([], index)
            if levels:
                start, end = token.start, tokens[stop - 1].end
                for level in levels:
                    if level != levels[0]:
                        result.append(Token(",", ",", "&", JOIN, start, end))
                    result.append(Token(level, level, level, WORD, start, end))
                index = stop
                continue
            if token.kind != "dash":
                result.append(token)
            elif token.form == "&":
                result.append(replace(token, kind=JOIN))
            index += 1
        return result

    def _range(self, tokens: Sequence[Token], index: int) -> tuple[list[str], int]:
        """Words of the range that begins at ``index`` and where it stops; no words where none does."""
        sequence = next((words for words in self._sequences if tokens[index].form in words), None)
        if sequence is None or index + 2 >= len(tokens):
            return [], index
        link, end = tokens[index + 1], tokens[index + 2]
        if link.kind != "dash" and link.raw not in _RANGE_WORDS:
            return [], index
        # "L1-3": the second level without its letter
        for word in (end.form, tokens[index].form.rstrip("0123456789") + end.form):
            if word in sequence:
                low, high = sorted((sequence.index(tokens[index].form), sequence.index(word)))
                return sequence[low : high + 1], index + 3
        return [], index

    def _correct(self, tokens: list[Token]) -> list[Token]:
        fixed: dict[str, tuple[str, float] | None] = {}
        result = []
        for token in tokens:
            if token.kind != WORD or self.lexicon.is_known(token.raw) or not 4 <= len(token.raw) <= 32:
                result.append(token)
                continue
            if token.raw not in fixed:
                fixed[token.raw] = self.lexicon.nearest(token.raw) if len(fixed) < _MAX_CORRECTIONS else None
            correction = fixed[token.raw]
            if correction is None:
                result.append(token)
                continue
            word = self._word(token.text, correction[0], token.start, token.end)
            result.append(replace(word, similarity=correction[1]))
        return result


def bag(tokens: Sequence[Token], raw: bool = False) -> tuple[str, ...]:
    """Base forms (or words) of tokens, sorted, so that word order does not matter; as they stand around an "and"."""
    words = [token.raw if raw else token.form for token in tokens]
    return tuple(words if any(token.kind == JOIN for token in tokens) else sorted(words))


def _phrase_end(tokens: Sequence[Token], index: int, words: Sequence[str]) -> int:
    """Where a phrase that begins at ``index`` stops, dashes between its words passed over; 0 where it is not there."""
    for word in words:
        while index < len(tokens) and tokens[index].kind == "dash" and tokens[index].form != "&":
            index += 1
        if index >= len(tokens) or word not in (tokens[index].raw, tokens[index].form):
            return 0
        index += 1
    return index


def _fold(text: str) -> tuple[str, Sequence[int]]:
    """Plain letters of a text and, for each, its place in the text: accents, ligatures and invisible marks resolved."""
    if text.isascii():
        return text, range(len(text))
    letters: list[str] = []
    places: list[int] = []
    for place, char in enumerate(text):
        plain = _SPELT_OUT.get(char.lower()) or unicodedata.normalize("NFKD", char)
        plain = plain if plain.isascii() else plain[:1]
        if unicodedata.category(plain[0]) in ("Mn", "Me", "Cf"):  # combining accents, direction marks, soft hyphens
            continue
        letters.append(plain)
        places += [place] * len(plain)
    return "".join(letters), places
