"""What the words around a name do to it: nothing, say where it is, or make it part of another name.

"segmentation of the kidney" is the kidney, "kidney stones", "fracture of the femur" and "brain lesion type" are not.
Every rule is one short method of :class:`Neighbourhood`.
"""

from __future__ import annotations

from collections.abc import Sequence

from .lexicon import JOIN, PREPOSITION, SIDE, SKIP, STOP, WORD, Lexicon
from .notation import GRADE
from .term_index import Match, is_generic, is_generic_lesion, is_lesion
from .tokenizer import Token

# Verbs with which an examination presents a structure; what stands before them only says what was imaged.
_SHOWING = {
    "showing",
    "revealing",
    "depicting",
    "demonstrating",
    "displaying",
    "highlighting",
    "visualizing",
    "visualising",
    "illustrating",
    "capturing",
    "delineating",
    "outlining",
    "identifying",
    "presenting",
    "exhibiting",
    "including",
}


class Neighbourhood:
    """The tokens of a prompt, and what each of them means for the names in it.

    Args:
        tokens: the prompt.
        matches: what was found in it, phrases without targets included.
        lexicon: the language.
        spoken: places of the tokens that name a modality.
        context: words that in this modality only tell what was imaged.
    """

    def __init__(
        self,
        tokens: Sequence[Token],
        matches: Sequence[Match],
        lexicon: Lexicon,
        spoken: frozenset[int],
        context: frozenset[str],
    ) -> None:
        self.tokens = tokens
        self.lexicon = lexicon
        self.context = context
        self.owner = {p: match for match in matches if match.entry.targets for p in range(match.start, match.stop)}
        self.spoken = frozenset(place for place in spoken if place not in self.owner)
        self._phrases = {
            place: "carrier" if match.entry.is_carrier else "other"
            for match in matches
            if not match.entry.targets
            for place in range(match.start, match.stop)
        }

    def role(self, place: int) -> str:
        """``match``, ``modality``, a token's kind, what the lexicon says of a word, or ``end`` outside the prompt."""
        if not 0 <= place < len(self.tokens):
            return "end"
        if place in self.owner:
            return "match"
        if place in self.spoken:
            return "modality"
        token = self.tokens[place]
        if token.kind != WORD:
            return token.kind
        if place in self._phrases:
            return self._phrases[place]
        if token.raw in self.context:
            return "carrier"
        if token.raw == GRADE:  # "lesion, PI-RADS 4", but no "PI-RADS 4" of a healthy organ
            return "carrier" if any(is_lesion(match) for match in self.owner.values()) else "other"
        role = self.lexicon.role(token.raw, token.form)
        if role == "adjective":  # it is as telling as the noun it describes
            described = self.owner.get(place + 1)
            if described is not None:
                return "unknown" if is_generic(described) else "carrier"
            return "carrier" if self.role(place + 1) in ("carrier", "modality") else "unknown"
        return role

    def link(self, start: int, stop: int) -> str:
        """How the words of a stretch tie the name behind them to what stands before.

        Returns:
            ``excluded`` ("without"), ``location`` ("next to"), ``preposition`` ("of", "in", "entering") or ``none``.
        """
        link = "none"
        for place in range(start, stop):
            token = self.tokens[place]
            if token.raw in self.lexicon.exclusions:
                return "excluded"
            if token.kind == PREPOSITION:
                link = "location" if token.raw in self.lexicon.location or link == "location" else "preposition"
            elif link == "none" and (token.raw in ("of", "to") or self._is_participle(place)):
                link = "preposition"
        return link

    def _is_participle(self, place: int) -> bool:
        """Whether a word ties what follows to what went before ("veins entering the heart")."""
        raw = self.tokens[place].raw
        return raw.endswith("ing") and self.role(place) == "carrier" and self.role(place - 1) != "end"

    def means_something_else(self, match: Match, start: int) -> bool:
        """Whether the words around a name make it part of another one; ``start``: where its item begins."""
        return (
            self._is_part_of_longer_name(match)
            or self._lesion_is_elsewhere(match)
            or self._is_changed_by_word_before(match, start)
            or self._is_part_asked_for(match, start)
        )

    def _is_part_of_longer_name(self, match: Match) -> bool:
        """Behind the name: a word that is unknown ("kidney xyz") or of medicine, but no target ("kidney stones")."""
        place = match.stop
        while self.role(place) == SIDE:
            place += 1
        if self.role(place) == "unknown" or (self.role(place) == "vague" and not self._names_work(place)):
            return True
        scan = self.role(place) == "modality"
        passed = ("carrier", SIDE, SKIP, "modality") if scan else ("carrier", SIDE, SKIP)
        while self.role(place) in passed and (scan or not self._ends_phrase(place, match)):
            place += 1
        return self.role(place) == "other" and not self._is_redundant(place, match)

    def _names_work(self, place: int) -> bool:
        """Whether an unknown noun behind a name is what is done in a study ("lesion xyzation on chest CT").

        It has to stand before a preposition, and words that say nothing have to lead from there to the modality.
        """
        place += 1
        while self.role(place) == "carrier":
            place += 1
        tied = self.role(place) == PREPOSITION and self.link(place, place + 1) == "preposition"
        while self.role(place) in (PREPOSITION, SKIP, "carrier"):
            place += 1
        return tied and self.role(place) == "modality"

    def _is_redundant(self, place: int, match: Match) -> bool:
        """Whether a word only says again what the name says ("venous structure of the jugular vein")."""
        form = self.tokens[place].form
        if form in match.key:
            return True
        names = [target.name.lower().split() for target in match.entry.targets]
        return all(form in map(self.lexicon.form, words) for words in names)

    def _is_class_word(self, place: int, match: Match) -> bool:
        """Whether a word only says what kind of thing the name is ("bony cranium", "bony anatomy of the cranium")."""
        group = match.entry.targets[0].concept.group
        describes = place == match.start - 1 or self.role(place + 1) in ("carrier", SKIP)
        return describes and self.tokens[place].form in self.lexicon.trailers.get(group, ())

    def _is_about_scan(self, start: int, stop: int) -> bool:
        """Whether a stretch names the examination ("CT of the orbit" before "showing the optic nerve")."""
        return any(place in self.spoken for place in range(start, stop))

    def _ends_phrase(self, place: int, match: Match) -> bool:
        """Whether a word ends the noun phrase before it: a verb ("lesion demonstrating"), or "of" and then a place."""
        raw = self.tokens[place].raw
        return raw.endswith(("ing", "ed")) or (raw == "of" and not is_generic(match))

    def _lesion_is_elsewhere(self, match: Match) -> bool:
        """ "lesion in the stomach": another target, unknown where no term holds both."""
        if not is_generic_lesion(match):
            return False
        place = match.stop
        while self.role(place) not in ("end", JOIN, STOP):
            if self.role(place) == "other":
                return True
            place += 1
        return False

    def _is_changed_by_word_before(self, match: Match, start: int) -> bool:
        """ "hypothalamic nucleus" is no nucleus, "non liver" no liver, "gaul bladder" may be anything."""
        place = match.start - 1
        while place >= start and self.role(place) in (SIDE, SKIP):
            place -= 1
        if place < start:
            return False
        before, raw = self.role(place), self.tokens[place].raw
        tied = any(self.tokens[i].raw == "of" for i in range(place, match.start))  # "xyzation of the lesion"
        if is_generic(match) and (before in ("unknown", "match") or (before == "vague" and not tied)):
            return True
        return raw == "non" or (before == "unknown" and self.lexicon.resembles_term(raw))

    def _is_part_asked_for(self, match: Match, start: int) -> bool:
        """Before the name: an unknown word tied to it ("xyz of the liver"), or a word of medicine ("pole of ...")."""
        place = match.start - 1
        bridge = False
        while place >= start and self.role(place) in (PREPOSITION, SKIP, SIDE):
            bridge = bridge or self.role(place) == PREPOSITION or self.tokens[place].raw == "of"
            place -= 1
        scan_word = self.role(place - 1) == "modality"  # "CT xyz of the esophagus": whatever the scan is called
        if bridge and place >= start and self.role(place) == "unknown" and not scan_word:
            return True
        while place >= start and self.role(place) not in ("match", "modality"):
            if self.tokens[place].raw in _SHOWING and self._is_about_scan(start, place):
                return False
            if self.role(place) == "other" and not self._is_redundant(place, match):
                return not self._is_class_word(place, match)
            place -= 1
        return False
