"""Word knowledge: what kind of word it is, its base form, what it means for its neighbours, and its misspellings.

A base form makes "renal", "kidneys" and "Kidney" one word. The rules (spelling variants, irregular plurals, words that
say nothing about the target, medical words that are no target) are data: ``language`` in the terminology.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rapidfuzz import process
from rapidfuzz.distance import OSA

JOIN, STOP, SIDE, SKIP, PREPOSITION, WORD = "join", "stop", "side", "skip", "preposition", "word"

_WORD = re.compile(r"[A-Za-z0-9]+(?:['\u2019][A-Za-z]+)*")


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
        self._forms: dict[str, str] = {}
        self.sides: dict[str, str] = dict(language.get("sides", {}))
        self._separators = frozenset(language.get("separators", ()))
        self._skip = frozenset(language.get("skip", ()))
        self.location = frozenset(language.get("location", ()))
        self.exclusions = frozenset(language.get("exclusions", ()))
        self._prepositions = frozenset(language.get("prepositions", ())) | self.location | self.exclusions
        self._verb_suffixes = tuple(language.get("verb_suffixes", ()))
        self._noun_suffixes = tuple(language.get("noun_suffixes", ()))
        self._adjective_suffixes = tuple(language.get("adjective_suffixes", ()))
        self._pathology_suffixes = tuple(language.get("pathology_suffixes", ()))
        self._plain = frozenset(language.get("plain_words", ()))
        carriers = language.get("carriers", ())
        self._carriers = frozenset(word for word in carriers if " " not in word)
        self.carrier_phrases = [text for text in carriers if " " in text]
        self._carrier_forms = {self.form(word) for word in self._carriers}
        others = language.get("other_terms", ())
        self.other_phrases = [text for text in others if " " in text]
        self._other_forms = {self.form(word) for word in others if " " not in word}
        self.fillers = frozenset(self.form(word) for word in language.get("fillers", ()))
        """Base forms that may stand inside a name without changing it ("upper part of the esophagus")."""
        self.trailers = {
            group: frozenset(self.form(word) for word in words) for group, words in language.get("trailers", {}).items()
        }
        """By group: base forms that may follow a name without changing it ("iliopsoas musculature")."""
        raw_terms = {match.lower() for term in terms for match in _WORD.findall(term)}
        raw_terms = {part for word in raw_terms for part in (word, possessive(word))}
        self._term_words = sorted(word for word in raw_terms if len(word) > 2 and word.isalpha())
        self.term_forms = {self.form(word) for word in raw_terms}
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

    def kind_and_form(self, raw: str) -> tuple[str, str]:
        """The kind of token a word makes, and the form it is compared by."""
        if raw in self.sides:
            return SIDE, self.sides[raw]
        if raw in self._separators:
            return JOIN, "&"
        if raw in self._skip:
            return SKIP, self.form(raw)
        if raw in self._prepositions:
            return PREPOSITION, raw
        return WORD, self.form(raw)

    def is_known(self, raw: str) -> bool:
        """Whether a word is in the vocabulary, as it stands or in its base form."""
        return raw in self._known or self.form(raw) in self._known or not raw.isalpha()

    def is_adjective(self, raw: str) -> bool:
        """Whether a word stands for another one ("renal" for kidney)."""
        return raw in self._variants

    def role(self, raw: str, form: str) -> str:
        """What an unmatched word means for its neighbours.

        Returns:
            ``carrier``: nothing ("segmentation"); ``other``: a medical word that is no target ("stones"); ``vague``: an
            unknown noun that by its ending may be one of either ("quantitation", "herniation"); ``adjective``: an
            unknown word that by its ending describes the next one ("endocardial"); ``unknown``.
        """
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
        if raw.endswith(self._noun_suffixes) and len(raw) > 5:
            return "vague"
        return "adjective" if raw.endswith(self._adjective_suffixes) and len(raw) > 5 else "unknown"

    def resembles_term(self, raw: str) -> bool:
        """Whether an unknown word is one slip away from a word of a term, too short to be corrected ("gal")."""
        near = process.extractOne(raw, self._term_words, scorer=OSA.distance, score_cutoff=1)
        return near is not None

    def nearest(self, raw: str) -> tuple[str, float] | None:
        """The known word that ``raw`` is a misspelling of, with the similarity; None where there is none, or a doubt.

        One slip (letter added, dropped, changed, or two exchanged) in a word of 5 to 9 letters, two in a longer one,
        the first letter right. Words of 4 letters only when one letter was left out. Where the nearest words mean
        different things, one with the same letters in another order is taken, else nothing is corrected.
        """
        limit = 2 if len(raw) >= 10 else 1
        found = process.extract(raw, self._goals, scorer=OSA.distance, score_cutoff=limit, limit=8)
        near = [(word, int(distance)) for word, distance, _ in found if word[0] == raw[0]]
        if len(raw) == 4:
            near = [(word, distance) for word, distance in near if len(word) == 5 and word[-1] == raw[-1]]
        if not near:
            return None
        best = min(distance for _, distance in near)
        words = [word for word, distance in near if distance == best]
        if self._meanings(words) > 1:
            words = [word for word in words if sorted(word) == sorted(raw)]
        if self._meanings(words) != 1:
            return None
        return words[0], 1.0 - best / max(len(raw), len(words[0]))

    def _meanings(self, words: Iterable[str]) -> int:
        return len({self.sides.get(word, self.form(word)) for word in words})


def possessive(word: str) -> str:
    """``word`` without an ending after an apostrophe."""
    return word if word.isalnum() else re.split(r"['\u2019]", word, maxsplit=1)[0]
