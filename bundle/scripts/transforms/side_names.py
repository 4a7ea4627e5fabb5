"""What the structures of a mirrored patient are called: left and right exchange through the terminology."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scripts.text.concepts import Target, normalise_sentence
from scripts.text.prompt_parser import PromptParser, UnknownPromptError
from scripts.text.terminology import Terminology

logger = logging.getLogger(__name__)

_SIDE_WORDS = {"left": re.compile(r"\b(left|sinist)"), "right": re.compile(r"\b(right|dext)")}


@dataclass(frozen=True)
class MirroredTable:
    """How a label map and its table of sentences change when the patient is mirrored."""

    values: Mapping[int, int]
    """Old label value -> new one, for pairs of which the table has both sides; all other values stay."""
    sentences: Mapping[int, list[str]]
    """The new table: label value -> sentences. A structure without a name on the other side is left out."""


class SideNames:
    """Names of mirrored structures.

    A left kidney becomes a right kidney; a liver stays a liver and a left atrium a left atrium, since their names are
    no matter of the side they lie on. What would have a wrong name afterwards (a right middle lobe on the left; a
    sentence with a side in it that nobody understands) gets none.

    Args:
        terminology: says which targets are pairs; the bundle's own when None.
    """

    def __init__(self, terminology: Terminology | None = None) -> None:
        self.terminology = terminology or Terminology.load()
        self._parser: PromptParser | None = None  # made when the first sentence is no name of the terminology
        self._known: dict[str | None, dict[str, Target]] = {}
        self._understood: dict[tuple[str, str | None], tuple[Target, ...]] = {}

    def targets(self, sentence: str, modality: str | None = None) -> tuple[Target, ...]:
        """What a sentence asks for, as the terminology or else the prompt parser understands it; may be empty."""
        key = (normalise_sentence(sentence), modality)
        if key not in self._understood:
            self._understood[key] = self._understand(*key)
        return self._understood[key]

    def mirrored_sentences(self, sentences: Sequence[str], modality: str | None = None) -> list[str]:
        """Sentences for the mirrored structure, in the same order; those that would be wrong are left out.

        Args:
            sentences: ways to ask for one structure.
            modality: of the image; None where unknown.

        Returns:
            Names and synonyms of the other side in place of this side's, its canonical name where there were other
            words; sentences that have no side as they are; empty where the mirrored structure has no name.
        """
        target = self._one_target(sentences, modality)
        if target is not None and target.concept.laterality is not None:
            other = self.terminology.other_side(target)
            return [] if other is None else self._translated(sentences, target, other)
        own = set() if target is None else _sides(" ".join(self.terminology.sentences(target)))
        kept = [text for text in sentences if _sides(text) <= own or len(_sides(text)) == len(_SIDE_WORDS)]
        if target is None and len(kept) < len(sentences):
            logger.warning("augment: %r names a side but no known target; mirrored patches do without it", sentences[0])
        return kept

    def mirrored_table(self, table: Mapping[int, Sequence[str]], modality: str | None = None) -> MirroredTable:
        """How a label map changes whose values mean what ``table`` (value -> sentences) says.

        Pairs of which the table has both sides exchange their values, so that a value keeps its meaning; one whose
        other side the table does not have keeps its value and is renamed.
        """
        target_of = {value: self._one_target(words, modality) for value, words in table.items()}
        times = Counter(target.id for target in target_of.values() if target is not None)
        value_of = {target.id: value for value, target in target_of.items() if target and times[target.id] == 1}
        values, sentences = {}, {}
        for value, words in table.items():
            target = target_of[value]
            other = self.terminology.other_side(target) if target is not None else None
            if target and other and target.id in value_of and other.id in value_of:
                values[value], sentences[value] = value_of[other.id], list(words)
            elif renamed := self.mirrored_sentences(words, modality):
                sentences[value] = renamed
        return MirroredTable(values, sentences)

    def _one_target(self, sentences: Sequence[str], modality: str | None) -> Target | None:
        """The target that the first sentence asks for which asks for a single one."""
        found = (self.targets(sentence, modality) for sentence in sentences)
        return next((targets[0] for targets in found if len(targets) == 1), None)

    def _translated(self, sentences: Sequence[str], target: Target, other: Target) -> list[str]:
        """Each known name of ``target`` by the name of ``other`` that stands at its place in the terminology."""
        # Both sides list the same synonyms in the same order.
        names = dict(zip(self.terminology.sentences(target), self.terminology.sentences(other), strict=False))
        found = [names[text] for text in map(normalise_sentence, sentences) if text in names]
        return list(dict.fromkeys(found)) or [other.sentence]

    def _understand(self, sentence: str, modality: str | None) -> tuple[Target, ...]:
        if modality not in self._known:
            known: dict[str, Target] = {}
            for target in self.terminology.targets(modality):
                for name in self.terminology.sentences(target):
                    known.setdefault(name, target)
            self._known[modality] = known
        if sentence in self._known[modality]:
            return (self._known[modality][sentence],)
        self._parser = self._parser or PromptParser(self.terminology)
        try:
            return tuple(self._parser.parse(sentence, modality))
        except UnknownPromptError:
            return ()


def _sides(text: str) -> set[str]:
    """Which of "left" and "right" a text speaks of."""
    return {side for side, word in _SIDE_WORDS.items() if word.search(text.lower())}
