"""Where in a row of tokens is a target named: every term as a bag of base forms, looked up window by window.

Word order inside a term does not matter ("kidney left", "lower lobe of the right lung"), words of no weight are left
out, and the side is kept apart from the name of a paired structure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .concepts import SIDES, Concept, Target
from .lexicon import JOIN, SIDE, SKIP, STOP, Lexicon, Token, bag
from .terminology import Terminology

Key = tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """What a term stands for; no targets: a phrase that is known to be none."""

    targets: tuple[Target, ...]
    sided: bool
    """Whether a side in the prompt chooses among the targets."""
    is_name: bool
    is_group: bool
    raw: Key
    """The words as written in the terminology."""


@dataclass(frozen=True)
class Match:
    """A stretch of tokens ``[start, stop)`` that names targets."""

    start: int
    stop: int
    key: Key
    entry: Entry
    sides: frozenset[str] = frozenset()
    family: int = -1
    """Start of the match this one was completed from ("medius" in "gluteus maximus and medius"); else its own."""


class TermIndex:
    """The terms of one modality.

    Args:
        terminology: where the terms come from.
        lexicon: brings their words to base forms.
        modality: canonical name.
    """

    def __init__(self, terminology: Terminology, lexicon: Lexicon, modality: str) -> None:
        self.modality = modality
        self._plain: dict[Key, list[Entry]] = {}  # the side is part of the term, or there is none
        self._sided: dict[Key, list[Entry]] = {}
        self._longest = 1
        self._forms: set[str] = set()
        targets = terminology.targets(modality)
        self._concepts = {(target.kind, target.name): target for target in targets}
        for target in targets:
            self._add_concept(target.concept, lexicon)
        for collection in terminology.collections:
            members = [self._concepts.get((collection.kind, name)) for name in collection.members]
            if all(members):
                chosen = tuple(member for member in members if member is not None)
                sided = any(member.concept.laterality for member in chosen)
                for term in (collection.name, *collection.synonyms):
                    self._add(term, chosen, sided, False, True, lexicon)
        for phrase in lexicon.other_phrases:
            if not self._plain.get(key := lexicon.term(phrase).key) and key not in self._sided:
                self._add(phrase, (), False, False, False, lexicon)

    def _add_concept(self, concept: Concept, lexicon: Lexicon) -> None:
        target = self._concepts[(concept.kind, concept.name)]
        for position, term in enumerate((concept.name, *concept.synonyms)):
            if concept.laterality is None or not lexicon.term(term).says_side:
                self._add(term, (target,), False, position == 0, False, lexicon)
            else:
                partner = self._concepts.get((concept.kind, concept.pair or ""))
                family = [item for item in (target, partner) if item is not None]
                family.sort(key=lambda item: SIDES.index(item.concept.laterality or "left"))
                self._add(term, tuple(family), True, position == 0, False, lexicon)

    def _add(
        self, term: str, targets: tuple[Target, ...], sided: bool, is_name: bool, is_group: bool, lexicon: Lexicon
    ) -> None:
        words = lexicon.term(term)
        key, raw = (words.key_without_side, words.raw_without_side) if sided else (words.key, words.raw)
        table = self._sided if sided else self._plain
        entry = Entry(targets, sided, is_name, is_group, raw)
        if key and entry not in table.setdefault(key, []):
            table[key].append(entry)
            self._longest = max(self._longest, len(key))
            self._forms.update(key)

    def __contains__(self, form: str) -> bool:
        """Whether a base form occurs in any term of the modality."""
        return form in self._forms

    def find(self, key: Key, sided: bool) -> list[Entry]:
        """Entries of a key, in file order."""
        return (self._sided if sided else self._plain).get(key, [])

    def matches(self, tokens: Sequence[Token]) -> list[Match]:
        """Non-overlapping matches in order of place; of overlapping ones the longest is kept.

        Args:
            tokens: the whole prompt.
        """
        everything = frozenset(token.raw for token in tokens)
        candidates = sorted(self._candidates(tokens, everything), key=lambda match: (-len(match.key), match.start))
        taken: set[int] = set()
        chosen = []
        for match in candidates:
            span = set(range(match.start, match.stop))
            if not span & taken:
                taken |= span
                chosen.append(match)
        chosen.sort(key=lambda match: match.start)
        return self._elliptic(tokens, chosen, everything)

    def _candidates(self, tokens: Sequence[Token], everything: frozenset[str]) -> Iterator[Match]:
        for start, first in enumerate(tokens):
            if first.kind in (SKIP, STOP, JOIN) or (first.kind != SIDE and first.form not in self):
                continue
            counted = 0
            # twice the longest term: room for sides and articles, and a bound on what a hostile text costs
            for stop in range(start + 1, min(start + 2 * self._longest, len(tokens)) + 1):
                last = tokens[stop - 1]
                if last.kind == STOP or counted > self._longest:
                    break
                if not last.counts:
                    continue
                if last.kind != SIDE and last.form not in self:
                    break
                counted += last.kind != SIDE
                if last.kind == JOIN or not counted:
                    continue
                match = self._lookup(tokens, start, stop, everything)
                if match is not None:
                    yield match

    def _lookup(self, tokens: Sequence[Token], start: int, stop: int, everything: frozenset[str]) -> Match | None:
        window = [token for token in tokens[start:stop] if token.counts]
        sideless = [token for token in window if token.kind != SIDE]
        sides = frozenset(token.form for token in window if token.kind == SIDE)
        if sides and any(token.kind == JOIN for token in sideless):
            return None  # "iliac artery, left iliac vein" is no "iliac arteries and veins"
        key = bag(window)
        found = [(key, entry) for entry in self.find(key, sided=False)]
        key = bag(sideless) if sides else key
        found += [(key, entry) for entry in self.find(key, sided=True)]
        if not found:
            return None
        if all(entry.sided for _, entry in found) and SIDE in (window[0].kind, window[-1].kind):
            return None  # sides at the ends are bound to the match later
        raw = bag(sideless, raw=True)
        key, entry = max(found, key=lambda item: self._rank(item[1], raw, everything))
        return Match(start, stop, key, entry, sides if entry.sided else frozenset(), start)

    @staticmethod
    def _rank(entry: Entry, raw: Key, everything: frozenset[str]) -> tuple[int, bool, bool, bool, int]:
        cues = {cue for target in entry.targets for cue in target.concept.cues}
        cue = 0 if not cues else 1 if cues & everything else -1
        # Longer keys first: "left ventricle" as such before "ventricle" of a side. Then names, then file order.
        first = min((target.id for target in entry.targets), default=0)
        return cue, not entry.sided, entry.raw == raw, entry.is_name, -first

    def _elliptic(self, tokens: Sequence[Token], matches: list[Match], everything: frozenset[str]) -> list[Match]:
        """Complete "upper and lower lobe", "gluteus maximus and medius": a lone word takes its neighbour's rest."""
        matches = list(matches)
        changed = True
        while changed:
            changed = False
            taken = {place for match in matches for place in range(match.start, match.stop)}
            for match in list(matches):
                for place in (self._lone(tokens, match.start - 1, -1, taken), self._lone(tokens, match.stop, 1, taken)):
                    derived = self._substitute(match, tokens[place], place, everything) if place is not None else None
                    if derived is not None:
                        matches.append(derived)
                        taken.add(derived.start)
                        changed = True
        return sorted(matches, key=lambda match: match.start)

    def _lone(self, tokens: Sequence[Token], place: int, step: int, taken: set[int]) -> int | None:
        """The place of a single unmatched term word that only a join (and words of no weight) parts from a match."""
        joined = False
        while 0 <= place < len(tokens) and place not in taken:
            token = tokens[place]
            if token.kind == JOIN:
                joined = True
            elif token.kind != SKIP:
                alone = token.form in self and token.kind != STOP
                return place if joined and alone else None
            place += step
        return None

    def _substitute(self, match: Match, token: Token, place: int, everything: frozenset[str]) -> Match | None:
        for position, form in enumerate(match.key):
            if form == token.form:
                return None
            key = tuple(sorted((*match.key[:position], token.form, *match.key[position + 1 :])))
            entries = self.find(key, match.entry.sided)
            if entries and entries[0].targets:
                entry = max(entries, key=lambda item: self._rank(item, key, everything))
                return replace(match, start=place, stop=place + 1, key=key, entry=entry)
        return None
