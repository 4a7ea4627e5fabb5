"""One prompt read in one modality: which matches are asked for, on which side, and which mean something else.

A match is not asked for where it only says what was imaged or where something is ("brain MRI", "in the liver"), and it
is refused where its neighbours make it part of another name ("kidney stones", "fracture of the femur", "left liver").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .concepts import SIDES, Target
from .lexicon import JOIN, PREPOSITION, SIDE, SKIP, STOP, WORD, Lexicon
from .neighbourhood import Neighbourhood
from .side_binding import SideBinding
from .term_index import Match, TermIndex, is_generic_lesion, is_lesion
from .tokenizer import Token

_SCORES = {"name": 1.0, "synonym": 0.95, "group": 0.9}
_WHOLES = {"heart": "cardiac", "brain": "brain"}  # names that are the whole of a group
_LISTING = frozenset(("and", "or", "&", "+", "/"))


@dataclass
class Reading:
    """What a prompt says when read in one modality."""

    targets: list[Target] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    related: list[Target] = field(default_factory=list)
    """Targets whose names occur in a phrase that means something else."""


class PromptReader:
    """Reads a prompt once; see :meth:`read`.

    Args:
        text: the prompt as written.
        tokens: its tokens.
        index: the terms of the modality it is read in.
        lexicon: the language.
        spoken: places of the tokens that name a modality.
        context: words that in this modality only tell what was imaged.
    """

    def __init__(
        self,
        text: str,
        tokens: Sequence[Token],
        index: TermIndex,
        lexicon: Lexicon,
        spoken: frozenset[int],
        context: frozenset[str],
    ) -> None:
        self.text = text
        self.tokens = tokens
        self.lexicon = lexicon
        matches = index.matches(tokens)
        self.near = Neighbourhood(tokens, matches, lexicon, spoken, context)
        self.matches = [match for match in matches if match.entry.targets]
        bound = SideBinding(tokens, self.matches)
        self.sides, self.first, self.last = bound.sides, bound.first, bound.last
        self.wanted: list[Match] = []
        self.mentioned: list[Match] = []
        """Matches that say what was imaged; asked for where nothing else is."""
        self.located: list[Match] = []
        """Matches that only say where something is; refused where nothing is asked for."""
        self.result = Reading()

    def read(self) -> Reading:
        """Targets in the order first asked, each once, and the parts of the text that could not be understood."""
        link = "none"
        for start, stop in self._items():
            carried = "location" if link == "location" and self._continues_list(start) else "none"
            inside = [match for match in self.matches if start <= match.start < stop]
            if inside:
                link = self._read_item(inside, start, stop, carried)
            else:
                link = self._read_unmatched(start, stop, carried)
        for match in self.wanted or self.mentioned:
            self._emit(match)
        if not self.wanted:
            for match in self.located:
                self._block(match)
        if not self.result.targets and not self.result.failures:
            self.result.failures.append("no structure named")
        self.result.targets = list(dict.fromkeys(self.result.targets))
        return self.result

    def _items(self) -> list[tuple[int, int]]:
        """Stretches between separators; a separator inside a match does not count."""
        items, start = [], 0
        for place, token in enumerate(self.tokens):
            if token.kind in (JOIN, STOP) and place not in self.near.owner:
                items.append((start, place))
                start = place + 1
        items.append((start, len(self.tokens)))
        return [(begin, end) for begin, end in items if end > begin]

    def _continues_list(self, start: int) -> bool:
        """Whether an item goes on with the one before ("near the spleen and the kidney")."""
        separator, before = self.tokens[start - 1], self.tokens[start - 2] if start > 1 else None
        return separator.raw in _LISTING and (before is None or before.kind not in (JOIN, STOP))

    # What an item asks for

    def _read_item(self, inside: Sequence[Match], start: int, stop: int, carried: str) -> str:
        """Sort the matches of an item into those asked for and those that only say where; the last one's link."""
        wanted: list[Match] = []
        mentioned: list[Match] = []
        link = carried
        for position, match in enumerate(inside):
            link = self.near.link(self._after(inside[position - 1]) if position else start, self.first[match.start])
            link = carried if link == "none" else link
            following = inside[position + 1] if position + 1 < len(inside) else None
            if link == "excluded":
                continue
            if wanted and self._is_bracketed_place(match, wanted[-1]):
                mentioned.append(match)
            elif link == "preposition" and wanted:
                mentioned.append(self._swap_place(wanted, match))
            elif link == "location":
                self._lend_side(match, wanted[-1:] or self.wanted[-1:])
                self.located.append(match)
            elif len(inside) > 1 and self._describes_scan(match, following, link, start):
                mentioned.append(match)
            elif not self._only_describes(match, wanted[-1] if wanted else None, following):
                wanted.append(match)
        for match in wanted:
            if self.near.means_something_else(match, start):
                self._block(match)
        if self._is_heading(start, stop):
            mentioned, wanted = mentioned + wanted, []
        self.wanted += wanted
        self.mentioned += mentioned
        tail = self.near.link(self.last[inside[-1].start], stop)  # "connecting the sternum" and then "and the scapula"
        return "location" if tail == "location" else link

    def _after(self, match: Match) -> int:
        """Where what follows a match begins: with its last word if that is a preposition ("edema surrounding")."""
        return match.stop - (self.tokens[match.stop - 1].kind == PREPOSITION)

    def _swap_place(self, wanted: list[Match], match: Match) -> Match:
        """Of a name and a place behind it ("hilum of the lung") the one that only says where: the second as a rule."""
        if is_lesion(match) and not is_lesion(wanted[-1]):
            place = wanted.pop()  # "lung involvement by COVID-19"
            wanted.append(match)
            return place
        if is_generic_lesion(wanted[-1]):  # "tumor of the stomach" is another, unknown target
            self._block(wanted[-1])
            self.result.related += match.entry.targets
        self._lend_side(match, wanted[-1:])
        return match

    def _is_bracketed_place(self, match: Match, before: Match) -> bool:
        """Whether a whole stands in brackets behind a part of it ("RA (heart)")."""
        gap = self.text[self.tokens[before.stop - 1].end : self.tokens[match.start].start]
        whole = match.key[0] if len(match.key) == 1 else ""
        return "(" in gap and _WHOLES.get(whole) == before.entry.targets[0].concept.group

    def _lend_side(self, place: Match, wanted: Sequence[Match]) -> None:
        """ "optic nerve of the right eye" is the right optic nerve."""
        for match in wanted:
            if match.entry.sided and not self.sides[match.start]:
                self.sides[match.start] = set(self.sides[place.start])

    def _describes_scan(self, match: Match, following: Match | None, link: str, start: int) -> bool:
        """Whether a region tells what was imaged ("brain MRI", "MR scan of the spine depicting ...")."""
        if self.near.role(match.stop) == "modality":
            return True
        imaged = link == "preposition" and any(self.near.role(i) == "modality" for i in range(start, match.start))
        if not imaged or following is None:
            return False
        gap = range(match.stop, self.first[following.start])
        return not any(self.tokens[i].kind == PREPOSITION or self.tokens[i].raw == "of" for i in gap)

    def _only_describes(self, match: Match, before: Match | None, after: Match | None) -> bool:
        """An adjective next to another name only describes it ("hepatic aorta", "hepatic course of the IVC")."""
        words = [token for token in self.tokens[match.start : match.stop] if token.kind == WORD]
        if not all(self.lexicon.is_adjective(token.raw) for token in words):
            return False
        if before is not None and before.stop == match.start:
            return True
        if after is None:
            return False
        gap = range(match.stop, self.first[after.start])
        links = [self.tokens[i].raw for i in gap if self.near.role(i) != "carrier" and self.tokens[i].raw != "the"]
        return after.start == match.stop or (len(gap) > 1 and links == ["of"] and self.tokens[gap[0]].raw != "of")

    def _is_heading(self, start: int, stop: int) -> bool:
        """Whether an opening names the examination ("MRI brain: left hippocampus")."""
        named = any(place in self.near.spoken for place in range(start, stop))
        ends = stop < len(self.tokens) and self.tokens[stop].kind == STOP
        return start == 0 and named and ends and any(match.start > stop for match in self.matches)

    # Items that name no target

    def _read_unmatched(self, start: int, stop: int, carried: str) -> str:
        """An item that names no target is passed over only where it says nothing else either."""
        link = self.near.link(start, stop)
        located = bool(self.wanted) and "location" in (link, carried)  # "..., below the mandible"
        roles = [(place, self.near.role(place)) for place in range(start, stop)]
        strange = [place for place, role in roles if role in ("other", "unknown")]
        if strange and not located and not self._is_alternative(start, stop) and not self._is_narrative(start, stop):
            self.result.failures.append(self._span(strange[0], strange[-1] + 1))
        return "location" if located else link

    def _is_narrative(self, start: int, stop: int) -> bool:
        """Whether an item is a sentence of its own next to one that names a target ("The patient is a farmer.")."""
        ends = stop == len(self.tokens) or self.tokens[stop].kind == STOP
        begins = start == 0 or self.tokens[start - 1].kind == STOP
        return stop - start > 3 and begins and ends and bool(self.matches)

    def _is_alternative(self, start: int, stop: int) -> bool:
        """Whether "or" offers something else in place of an unknown item."""
        links = [self.tokens[place].raw for place in (start - 1, stop) if 0 <= place < len(self.tokens)]
        return "or" in links and bool(self.matches)

    # Results

    def _block(self, match: Match) -> None:
        """Note that the phrase around a match means something else."""
        self.result.related += match.entry.targets
        start, stop = self.first[match.start], self.last[match.start]
        while start > 0 and self.near.role(start - 1) in ("unknown", "other", SKIP, PREPOSITION, "carrier"):
            start -= 1
        while self.near.role(stop) in ("unknown", "other", "carrier"):
            stop += 1
        self.result.failures.append(self._span(start, stop))

    def _span(self, start: int, stop: int) -> str:
        return self.text[self.tokens[start].start : self.tokens[stop - 1].end][:80]

    def _emit(self, match: Match) -> None:
        """Add the targets of a match on the sides asked for, and how they were understood."""
        chosen = self._on_side(match)
        start, stop = self.first[match.start], self.last[match.start]
        if not chosen:
            self.result.related += match.entry.targets
            self.result.failures.append(self._span(start, stop))
            return
        similarity = min([token.similarity for token in self.tokens[start:stop]], default=1.0)
        how = "group" if match.entry.is_group else "name" if match.entry.is_name else "synonym"
        score = round(_SCORES[how] * similarity, 3)
        how = "fuzzy" if similarity < 1 else how
        matched = self._span(start, stop)
        self.result.targets += [replace(target, matched=matched, how=how, score=score) for target in chosen]

    def _on_side(self, match: Match) -> list[Target]:
        """The targets of a match on its side; none where it has no such side ("left liver")."""
        sides, chosen = self.sides[match.start], list(match.entry.targets)
        if sides and (match.entry.sided or chosen[0].concept.laterality):
            allowed = set(SIDES) if "both" in sides else sides
            return [target for target in chosen if target.concept.laterality in (*allowed, None)]
        beside = SIDE in (self.near.role(match.start - 1), self.near.role(match.stop))
        if sides & set(SIDES) and beside:
            return [target for target in chosen if target.concept.sideless]
        return chosen
