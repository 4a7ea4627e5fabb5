"""One prompt read in one modality: which matches are asked for, on which side, and which mean something else.

A match is not asked for where it only says what was imaged or where something is ("brain MRI", "in the liver"), and it
is refused where its neighbours make it part of another name ("kidney stones", "fracture of the femur", "left liver").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .concepts import SIDES, Target
from .lexicon import JOIN, PREPOSITION, SIDE, SKIP, STOP, WORD, Lexicon, Token
from .side_binding import SideBinding
from .term_index import Match, TermIndex

_SCORES = {"name": 1.0, "synonym": 0.95, "group": 0.9}


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
        self.matches = [match for match in matches if match.entry.targets]
        self.others = {
            place for match in matches if not match.entry.targets for place in range(match.start, match.stop)
        }
        self.context = context
        self.owner = {place: match for match in self.matches for place in range(match.start, match.stop)}
        self.spoken = frozenset(place for place in spoken if place not in self.owner)
        bound = SideBinding(tokens, self.matches)
        self.sides, self.first, self.last = bound.sides, bound.first, bound.last
        self.result = Reading()

    def read(self) -> Reading:
        """Targets in the order first asked, each once, and the parts of the text that could not be understood."""
        kept: list[Match] = []
        context: list[Match] = []
        for start, stop in self._items():
            inside = [match for match in self.matches if start <= match.start < stop]
            if not inside:
                self._check_unmatched(start, stop)
                continue
            wanted, mentioned = self._subjects(inside, start)
            if self._is_heading(start, stop):
                mentioned, wanted = mentioned + wanted, []
            kept += wanted
            context += mentioned
        for match in kept or context:
            self._emit(match)
        if not self.result.targets and not self.result.failures:
            self.result.failures.append("no structure named")
        self.result.targets = list(dict.fromkeys(self.result.targets))
        return self.result

    def _items(self) -> list[tuple[int, int]]:
        """Stretches between separators; a separator inside a match does not count."""
        items, start = [], 0
        for place, token in enumerate(self.tokens):
            if token.kind in (JOIN, STOP) and place not in self.owner:
                items.append((start, place))
                start = place + 1
        items.append((start, len(self.tokens)))
        return [(begin, end) for begin, end in items if end > begin]

    def _is_heading(self, start: int, stop: int) -> bool:
        """Whether an opening names the examination ("MRI brain: left hippocampus")."""
        named = any(place in self.spoken for place in range(start, stop))
        ends = stop < len(self.tokens) and self.tokens[stop].kind == STOP
        return start == 0 and named and ends and any(match.start > stop for match in self.matches)

    def _role(self, place: int) -> str:
        """``match``, ``modality``, a token's kind, or what the lexicon says of a word."""
        if place in self.owner:
            return "match"
        if place in self.spoken:
            return "modality"
        token = self.tokens[place]
        if token.kind != WORD:
            return token.kind
        if place in self.others:
            return "other"
        return "carrier" if token.raw in self.context else self.lexicon.role(token)

    # What an item asks for

    def _subjects(self, inside: list[Match], start: int) -> tuple[list[Match], list[Match]]:
        """Split the matches of an item into those asked for and those that only say where."""
        wanted: list[Match] = []
        mentioned: list[Match] = []
        for position, match in enumerate(inside):
            link = self._link(match, inside[position - 1].stop if position else start)
            if link == "excluded":
                continue
            if position and link == "preposition" and wanted:
                if match.entry.targets[0].kind == "lesion" and wanted[-1].entry.targets[0].kind == "anatomy":
                    mentioned.append(wanted.pop())  # "lung involvement by COVID-19"
                    wanted.append(match)
                else:
                    self._check_generic_place(wanted[-1], match)
                    mentioned.append(match)
                continue
            if link == "location":
                if not wanted:
                    self._block(match)
                continue
            following = inside[position + 1] if position + 1 < len(inside) else None
            if len(inside) > 1 and self._describes_scan(match, following, link, start):
                mentioned.append(match)
                continue
            if self._only_describes(match, wanted[-1] if wanted else None, following):
                continue
            wanted.append(match)
        for match in wanted:
            if self._means_something_else(match, start):
                self._block(match)
        return wanted, mentioned

    def _link(self, match: Match, after: int) -> str:
        """How a match hangs on what stands before it in its item."""
        link = "none"
        for place in range(after, self.first[match.start]):
            token = self.tokens[place]
            if token.raw in self.lexicon.exclusions:
                return "excluded"
            if token.kind == PREPOSITION:
                link = "location" if token.raw in self.lexicon.location else "preposition"
            elif token.raw == "of" and link == "none":
                link = "preposition"
        return link

    def _describes_scan(self, match: Match, following: Match | None, link: str, start: int) -> bool:
        """Whether a region tells what was imaged ("brain MRI", "MR scan of the spine depicting ...")."""
        if self._at(match.stop) == "modality":
            return True
        imaged = link == "preposition" and any(self._at(i) == "modality" for i in range(start, match.start))
        return imaged and following is not None and self._link(following, match.stop) == "none"

    def _only_describes(self, match: Match, before: Match | None, after: Match | None) -> bool:
        """An adjective right next to another name only describes it ("hepatic aorta", "IVC, hepatic segment")."""
        words = [token for token in self.tokens[match.start : match.stop] if token.kind == WORD]
        touches_before = before is not None and before.stop == match.start
        touches = touches_before or (after is not None and after.start == match.stop)
        return touches and all(self.lexicon.is_adjective(token.raw) for token in words)

    def _at(self, place: int) -> str:
        return self._role(place) if 0 <= place < len(self.tokens) else "end"

    def _means_something_else(self, match: Match, start: int) -> bool:
        """Whether the words around a name make it part of another one ("kidney stones", "fracture of the femur")."""
        place = match.stop
        while self._at(place) == SIDE:
            place += 1
        if self._at(place) in ("unknown", "vague"):
            return True
        scan = self._at(place) == "modality"
        passed = ("carrier", SIDE, SKIP, "modality") if scan else ("carrier", SIDE, SKIP)
        while self._at(place) in passed and (scan or not self._is_verb(place)):
            place += 1
        if self._at(place) == "other":
            return True
        if _is_generic_lesion(match):  # "lesion in the stomach": another target, unknown where no term holds both
            while self._at(place) not in ("end", JOIN, STOP):
                place += 1
                if self._at(place) == "other":
                    return True
        place = match.start - 1
        while self._at(place) in (SIDE, SKIP) and place >= start:
            place -= 1
        before = self._at(place) if place >= start else "end"
        if _is_generic(match) and before in ("unknown", "vague", "match"):
            return True
        if before == "unknown" and self.lexicon.resembles_term(self.tokens[place].raw):
            return True
        if place >= start and self.tokens[place].raw == "non":
            return True
        bridge = False
        while place >= start and self._at(place) in (PREPOSITION, SKIP, SIDE):
            bridge = bridge or self._at(place) == PREPOSITION or self.tokens[place].raw == "of"
            place -= 1
        bridge = bridge or any(self.tokens[i].raw == "of" for i in range(max(start, place + 1), match.start))
        if bridge and place >= start and self._at(place) == "unknown":
            return True
        while place >= start and self._at(place) not in ("match", "modality"):
            # "venous structure of ...": an adjective of a word that says nothing says nothing either
            vague = bridge and self.lexicon.is_adjective(self.tokens[place].raw) and self._at(place + 1) == "carrier"
            if self._at(place) == "other" and not vague:
                return True
            place -= 1
        return False

    def _is_verb(self, place: int) -> bool:
        """Whether a word ends the noun phrase before it ("lesion demonstrating ...")."""
        return self.tokens[place].raw.endswith(("ing", "ed"))

    def _check_generic_place(self, match: Match, place: Match) -> None:
        """A general word for a lesion in a place is another, unknown target ("tumor of the stomach")."""
        if _is_generic_lesion(match):
            self._block(match)
            self.result.related += place.entry.targets

    def _check_unmatched(self, start: int, stop: int) -> None:
        """An item that names no target is passed over only where it says nothing else either."""
        roles = [(place, self._role(place)) for place in range(start, stop)]
        strange = [place for place, role in roles if role in ("other", "unknown")]
        if not strange or self._is_alternative(start, stop):
            return
        ends_sentence = stop < len(self.tokens) and self.tokens[stop].kind == STOP
        begins_sentence = start == 0 or self.tokens[start - 1].kind == STOP
        narrative = len(roles) > 3 and (ends_sentence or stop == len(self.tokens)) and begins_sentence
        if not narrative or not self.matches:
            self.result.failures.append(self._span(strange[0], strange[-1] + 1))

    def _is_alternative(self, start: int, stop: int) -> bool:
        """Whether "or" offers something else in place of an unknown item."""
        links = [self.tokens[place].raw for place in (start - 1, stop) if 0 <= place < len(self.tokens)]
        return "or" in links and bool(self.matches)

    # Results

    def _block(self, match: Match) -> None:
        self.result.related += match.entry.targets
        start, stop = self.first[match.start], self.last[match.start]
        while start > 0 and self._at(start - 1) in ("unknown", "other", SKIP, PREPOSITION, "carrier"):
            start -= 1
        while self._at(stop) in ("unknown", "other", "carrier"):
            stop += 1
        self.result.failures.append(self._span(start, stop))

    def _span(self, start: int, stop: int) -> str:
        return self.text[self.tokens[start].start : self.tokens[stop - 1].end][:80]

    def _emit(self, match: Match) -> None:
        sides = self.sides[match.start]
        chosen = list(match.entry.targets)
        if sides and (match.entry.sided or chosen[0].concept.laterality):
            allowed = set(SIDES) if "both" in sides else sides
            chosen = [target for target in chosen if target.concept.laterality in (*allowed, None)]
        elif sides & set(SIDES) and self._adjacent_side(match):
            chosen = [target for target in chosen if target.concept.sideless]  # "left liver" is not the liver
        if not chosen:
            self.result.related += match.entry.targets
            self.result.failures.append(self._span(self.first[match.start], self.last[match.start]))
            return
        start, stop = self.first[match.start], self.last[match.start]
        similarity = 1.0
        for token in self.tokens[start:stop]:
            similarity = min(similarity, token.similarity)
        how = "group" if match.entry.is_group else "name" if match.entry.is_name else "synonym"
        score = round(_SCORES[how] * similarity, 3)
        how = "fuzzy" if similarity < 1 else how
        matched = self._span(start, stop)
        self.result.targets += [replace(target, matched=matched, how=how, score=score) for target in chosen]

    def _adjacent_side(self, match: Match) -> bool:
        return self._at(match.start - 1) == SIDE or self._at(match.stop) == SIDE


def _is_generic(match: Match) -> bool:
    return any(target.concept.generic for target in match.entry.targets)


def _is_generic_lesion(match: Match) -> bool:
    return _is_generic(match) and match.entry.targets[0].concept.group == "lesions"
