"""Which structure does a "left" belong to: every side word of a prompt is given to one match.

Sides stand before ("left kidney", "left and right kidney"), after ("kidney left"), behind a comma ("kidney, left") or
once for a list ("gluteus maximus and medius on the right").
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from .lexicon import JOIN, PREPOSITION, SIDE, SKIP, STOP
from .term_index import Match
from .tokenizer import Token

_REACH = 12  # a side word further away from a name than this does not belong to it


class SideBinding:
    """The sides of matches.

    Args:
        tokens: the whole prompt.
        matches: what was found in it, in order of place.

    Attributes:
        sides: by a match's start, the forms of its side words (``left``, ``right``, ``both``).
        first: by a match's start, its first token, side words included.
        last: the same for the end (exclusive).
    """

    def __init__(self, tokens: Sequence[Token], matches: Sequence[Match]) -> None:
        self.tokens = tokens
        self.matches = matches
        self.owner = {place: match for match in matches for place in range(match.start, match.stop)}
        self.sides: dict[int, set[str]] = {match.start: set(match.sides) for match in matches}
        self.first = {match.start: match.start for match in matches}
        self.last = {match.start: match.stop for match in matches}
        self._bind_sides()
        self._share_sides()

    def _bind_sides(self) -> None:
        """Give every side word outside the matches to the match it belongs to."""
        place = 0
        while place < len(self.tokens):
            if self.tokens[place].kind != SIDE or place in self.owner:
                place += 1
                continue
            stop = place + 1
            while (following := self._next_side(stop)) is not None:
                stop = following + 1
            before, after = self._neighbour(place - 1, -1), self._neighbour(stop, 1)
            join = next((i for i in range(place, stop) if self.tokens[i].kind == JOIN), None)
            if before is not None and after is not None and join is not None:  # "kidney left, right adrenal"
                self._give_sides(before, place, join)
                self._give_sides(after, join, stop)
            elif (match := self._side_owner(place, stop)) is not None:
                self._give_sides(match, place, stop)
            place = stop

    def _next_side(self, place: int) -> int | None:
        """The place of a side word that goes with the one before ("left and right", "on the left and on the right")."""
        while place < len(self.tokens) and place not in self.owner:
            token = self.tokens[place]
            if token.kind == SIDE:
                return place
            if token.kind not in (JOIN, SKIP, PREPOSITION):
                return None
            place += 1
        return None

    def _give_sides(self, match: Match, start: int, stop: int) -> None:
        places = [i for i in range(start, stop) if self.tokens[i].kind == SIDE]
        self.sides[match.start] |= {self.tokens[i].form for i in places}
        self.first[match.start] = min(self.first[match.start], *places)
        self.last[match.start] = max(self.last[match.start], places[-1] + 1)

    def _share_sides(self) -> None:
        """A side said once holds for all of "gluteus maximus and medius, right" and "left kidney and adrenal gland"."""
        families: dict[int, set[str]] = {}
        for match in self.matches:
            families.setdefault(match.family, set()).update(self.sides[match.start])
        for match in self.matches:
            if not self.sides[match.start]:
                self.sides[match.start] = set(families[match.family])
        for before, match in pairwise(self.matches):  # said twice: "right back muscles (autochthon)"
            if not self.sides[match.start] and self._is_repeated(before, match):
                self.sides[match.start] = set(self.sides[before.start])
        for place, match in enumerate(self.matches):
            own = self.sides[match.start]
            if own and self.first[match.start] < match.start:
                self._spread(own, self.matches[place + 1 :], match, 1)
            elif own and self.last[match.start] > match.stop:
                self._spread(own, self.matches[:place][::-1], match, -1)

    def _is_repeated(self, before: Match, match: Match) -> bool:
        """Whether a match names the same things as the one before it, with at most a comma between them."""
        gap = [self.tokens[place] for place in range(self.last[before.start], match.start)]
        close = all(token.raw == "," or token.kind == SKIP for token in gap)
        return close and set(before.entry.targets) == set(match.entry.targets)

    def _spread(self, own: set[str], others: Sequence[Match], match: Match, step: int) -> None:
        """Give a match's side to the others of its list, as long as they could take one and have none.

        Forwards ("left caudate, putamen and pallidum") the list has to end with "and", backwards ("caudate and putamen
        on the left") every link has to be one: commas alone list unrelated things.
        """
        chain: list[Match] = []
        links: list[str] = []
        for other in others:
            left, right = (match, other) if step > 0 else (other, match)
            if right.start != left.stop + 1 or self.tokens[left.stop].kind != JOIN:
                break
            singular = self.tokens[other.stop - 1].raw == self.tokens[other.stop - 1].form
            if not (other.entry.sided and singular) or self.sides[other.start]:
                break
            chain.append(other)
            links.append(self.tokens[left.stop].raw)
            match = other
        ends = links[-1:] if step > 0 else links
        if chain and all(link in ("and", "&", "+") for link in ends):
            for other in chain:
                self.sides[other.start] = set(own)

    def _side_owner(self, start: int, stop: int) -> Match | None:
        before = self._neighbour(start - 1, -1)
        after = self._neighbour(stop, 1)
        if before is not None and after is not None:
            takes = _takes_side(before) and not self.sides[before.start]
            trailing = takes and (not _takes_side(after) or self._side_follows(after.stop))
            return before if trailing else after
        if before is not None or after is not None:
            return after or before
        # alone between separators: "kidney, left"
        before = self._neighbour(start - 1, -1, across=True)
        after = self._neighbour(stop, 1, across=True)
        if before is not None and _takes_side(before) and not self.sides[before.start]:
            return before
        return after

    def _neighbour(self, place: int, step: int, across: bool = False) -> Match | None:
        """The next match in a direction with no separator between; ``across`` allows one, but no end of a sentence."""
        crossed = False
        end = place + step * _REACH
        while 0 <= place < len(self.tokens) and place != end:
            if place in self.owner:
                return self.owner[place]
            if self.tokens[place].kind in (JOIN, STOP):
                if not across or crossed or self.tokens[place].kind == STOP:
                    return None
                crossed = True
            place += step
        return None

    def _side_follows(self, place: int) -> bool:
        return place < len(self.tokens) and self.tokens[place].kind == SIDE and place not in self.owner


def _takes_side(match: Match) -> bool:
    return match.entry.sided or any(target.concept.sideless for target in match.entry.targets)
