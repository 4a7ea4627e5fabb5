"""Where in a row of tokens is a target named: every term as a bag of base forms, looked up window by window.

Word order inside a term does not matter ("kidney left", "lower lobe of the right lung"), words of no weight are left
out, and the side is kept apart from the name of a paired structure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .concepts import SIDES, Concept, Target
from .lexicon import JOIN, PREPOSITION, SIDE, SKIP, STOP, WORD
from .terminology import Terminology
from .tokenizer import Token, Tokenizer, bag

Key = tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """What a term stands for; no targets: a phrase that is known to be none."""

    targets: tuple[Target, ...]
    sided: bool = False
    """Whether a side in the prompt chooses among the targets."""
    is_name: bool = False
    is_group: bool = False
    raw: Key = ()
    """The words as written in the terminology."""
    is_carrier: bool = False
    """A phrase that says nothing about the target ("lower limb")."""


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
    trail: int = 0
    """How many of the last tokens are words that follow the name without changing it."""


class TermIndex:
    """The terms of one modality.

    Args:
        terminology: where the terms come from.
        tokenizer: brings their words to base forms.
        modality: canonical name.
    """

    def __init__(self, terminology: Terminology, tokenizer: Tokenizer, modality: str) -> None:
        self.modality = modality
        self._tokenizer = tokenizer
        self._fillers = tokenizer.lexicon.fillers
        self._trailers = tokenizer.lexicon.trailers
        self._plain: dict[Key, list[Entry]] = {}  # the side is part of the term, or there is none
        self._sided: dict[Key, list[Entry]] = {}
        self._longest = 1
        self._forms: set[str] = set()
        self._repeating: set[str] = set()  # forms that some term says more than once
        targets = terminology.targets(modality)
        self._concepts = {(target.kind, target.name): target for target in targets}
        for target in targets:
            self._add_concept(target.concept)
        for collection in terminology.collections:
            members = [self._concepts.get((collection.kind, name)) for name in collection.members]
            if all(members):
                chosen = tuple(member for member in members if member is not None)
                sided = any(member.concept.laterality for member in chosen)
                for term in (collection.name, *collection.synonyms):
                    self._add(term, Entry(chosen, sided, is_group=True))
        for phrases, is_carrier in (
            (tokenizer.lexicon.other_phrases, False),
            (tokenizer.lexicon.carrier_phrases, True),
        ):
            for phrase in phrases:
                key = tokenizer.term(phrase).key
                if not self._plain.get(key) and key not in self._sided:
                    self._add(phrase, Entry((), is_carrier=is_carrier))

    def _add_concept(self, concept: Concept) -> None:
        target = self._concepts[(concept.kind, concept.name)]
        partner = self._concepts.get((concept.kind, concept.pair or ""))
        family = [item for item in (target, partner) if item is not None]
        family.sort(key=lambda item: SIDES.index(item.concept.laterality or "left"))
        for position, term in enumerate((concept.name, *concept.synonyms)):
            sided = concept.laterality is not None and self._tokenizer.term(term).says_side
            self._add(term, Entry(tuple(family) if sided else (target,), sided, is_name=position == 0))

    def _add(self, term: str, entry: Entry) -> None:
        words = self._tokenizer.term(term)
        key, raw = (words.key_without_side, words.raw_without_side) if entry.sided else (words.key, words.raw)
        table = self._sided if entry.sided else self._plain
        entry = replace(entry, raw=raw)
        if key and entry not in table.setdefault(key, []):
            table[key].append(entry)
            self._longest = max(self._longest, len(key))
            self._repeating.update(form for form in key if key.count(form) > 1)
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
        candidates = self._candidates(tokens, everything)
        taken: set[int] = set()
        chosen = []
        for match in sorted(candidates, key=_length_first):
            if taken.isdisjoint(range(match.start, match.stop)):
                taken.update(range(match.start, match.stop))
                chosen.append(match)
        chosen.sort(key=lambda match: match.start)
        return self._elliptic(tokens, chosen, everything)

    def _candidates(self, tokens: Sequence[Token], everything: frozenset[str]) -> Iterator[Match]:
        for start, first in enumerate(tokens):
            if first.kind in (SKIP, STOP, JOIN) or (first.kind != SIDE and first.form not in self):
                continue
            counted = 0
            said: set[str] = set()
            # twice the longest term: room for sides and articles, and a bound on what a hostile text costs
            for stop in range(start + 1, min(start + 2 * self._longest, len(tokens)) + 1):
                last = tokens[stop - 1]
                if last.kind == STOP or counted > self._longest:
                    break
                if not last.counts:
                    continue
                if last.kind != SIDE and last.form not in self:
                    if last.form in self._fillers:
                        continue
                    break
                if last.kind == WORD and last.form in said and last.form not in self._repeating:
                    break  # no term says it twice
                said.add(last.form)
                counted += last.kind != SIDE
                if last.kind == JOIN or not counted:
                    continue
                match = self._lookup(tokens, start, stop, everything)
                if match is not None:
                    yield self._with_trailers(match, tokens)

    def _lookup(self, tokens: Sequence[Token], start: int, stop: int, everything: frozenset[str]) -> Match | None:
        """The best term made of all counted words of a window, or of all but the fillers inside it."""
        window = [token for token in tokens[start:stop] if token.counts]
        inner = [token for token in window[1:-1] if token.kind == SIDE or token.form not in self._fillers]
        found = self._entries(window)
        if not found and len(inner) < len(window) - 2:
            window = [window[0], *inner, window[-1]]
            found = self._entries(window)
        if not found:
            return None
        if all(entry.sided for _, entry in found) and SIDE in (window[0].kind, window[-1].kind):
            return None  # sides at the ends are bound to the match later
        raw = bag([token for token in window if token.kind != SIDE], raw=True)
        key, entry = max(found, key=lambda item: self._rank(item[1], raw, everything))
        if not entry.targets and any(token.kind == PREPOSITION for token in tokens[start:stop]):
            return None  # "wall in the chest" is no chest wall
        sides = frozenset(token.form for token in window if token.kind == SIDE)
        return Match(start, stop, key, entry, sides if entry.sided else frozenset(), start)

    def _entries(self, window: Sequence[Token]) -> list[tuple[Key, Entry]]:
        sideless = [token for token in window if token.kind != SIDE]
        sides = len(window) > len(sideless)
        if sides and any(token.kind == JOIN for token in sideless):
            return []  # "iliac artery, left iliac vein" is no "iliac arteries and veins"
        key = bag(window)
        found = [(key, entry) for entry in self.find(key, sided=False)]
        key = bag(sideless) if sides else key
        return found + [(key, entry) for entry in self.find(key, sided=True)]

    def _with_trailers(self, match: Match, tokens: Sequence[Token]) -> Match:
        """``match`` with the words behind it that only repeat what kind of thing it is ("iliac artery vessel")."""
        if not match.entry.targets:
            return match
        allowed = self._trailers.get(match.entry.targets[0].concept.group, frozenset())
        stop = match.stop
        while stop < len(tokens) and tokens[stop].kind == WORD and tokens[stop].form in allowed:
            stop += 1
        return replace(match, stop=stop, trail=stop - match.stop)

    @staticmethod
    def _rank(entry: Entry, raw: Key, everything: frozenset[str]) -> tuple[int, bool, bool, bool, int]:
        cues = {cue for target in entry.targets for cue in target.concept.cues}
        cue = 0 if not cues else 1 if cues & everything else -1
        # Longer keys first: "left ventricle" as such before "ventricle" of a side. Then names, then file order.
        first = min((target.id for target in entry.targets), default=0)
        return cue, entry.raw == raw, not entry.sided, entry.is_name, -first

    def _elliptic(self, tokens: Sequence[Token], matches: list[Match], everything: frozenset[str]) -> list[Match]:
        """Complete "upper and lower lobe", "gluteus maximus and medius": a lone word takes its neighbour's rest."""
        matches = list(matches)
        changed = True
        while changed:
            changed = False
            owner = {place: match for match in matches for place in range(match.start, match.stop)}
            for match in list(matches):
                for step in (-1, 1):
                    place = self._lone(tokens, match.start - 1 if step < 0 else match.stop, step, owner)
                    derived = self._substitute(match, tokens[place], place, everything) if place is not None else None
                    if derived is None or place is None:
                        continue
                    if (held := owner.get(place)) is not None:
                        if is_generic_lesion(match) or held not in matches:
                            continue
                        matches.remove(held)
                    matches.append(derived)
                    owner[place] = derived
                    changed = True
        return sorted(matches, key=lambda match: match.start)

    @staticmethod
    def _lone(tokens: Sequence[Token], place: int, step: int, owner: dict[int, Match]) -> int | None:
        """The place of a single term word that only a join (and words of no weight) parts from a match.

        The word is unmatched, or a general one behind the match ("nodules and masses").
        """
        joined = False
        while 0 <= place < len(tokens):
            token = tokens[place]
            if token.kind == JOIN:
                joined = True
            elif token.kind != SKIP:
                held = owner.get(place)
                general = held is not None and step > 0 and is_generic_lesion(held) and held.stop == place + 1
                ends = place + 1 == len(tokens) or tokens[place + 1].kind in (JOIN, STOP)
                if token.kind == SIDE and not ends:  # "colon and left kidney"
                    return None
                return place if joined and token.kind != STOP and (held is None or general) else None
            place += step
        return None

    def _substitute(self, match: Match, token: Token, place: int, everything: frozenset[str]) -> Match | None:
        if token.form not in self or token.form in match.key:
            return None
        for position in range(len(match.key)):
            key = tuple(sorted((*match.key[:position], token.form, *match.key[position + 1 :])))
            entries = self.find(key, match.entry.sided)
            if len(key) > 1 and entries and entries[0].targets:
                entry = max(entries, key=lambda item: self._rank(item, key, everything))
                return replace(match, start=place, stop=place + 1, key=key, entry=entry, trail=0)
        return None


def _length_first(match: Match) -> tuple[int, int, int]:
    """Sorts matches: those that explain most words first, then in order of place."""
    return -len(match.key) - match.trail, -len(match.key), match.start


def is_generic(match: Match) -> bool:
    """Whether an unknown word before the name changes its meaning ("... lesion", "... nucleus")."""
    return any(target.concept.generic for target in match.entry.targets)


def is_generic_lesion(match: Match) -> bool:
    """Whether the name is a general word for a lesion ("tumor", "mass")."""
    return is_generic(match) and is_lesion(match)


def is_lesion(match: Match) -> bool:
    """Whether the name is one of a lesion."""
    return match.entry.targets[0].concept.group == "lesions"
