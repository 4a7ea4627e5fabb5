"""Every target's names, synonyms, side, colour, window and inference policy, as ``configs/terminology.json`` has them.

The file is the single place where a concept is described: parser, embedding bank, resampling, post-processing and
viewers all read it through this module. Adding a concept means adding an entry to the file. Nothing here needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rapidfuzz import fuzz, process

from .concepts import Collection, Concept, Modality, Policy, Target, normalise_sentence
from .terminology_file import read_terminology

DEFAULT_PATH = Path(__file__).resolve().parents[2] / "configs" / "terminology.json"


class Terminology:
    """The terminology in memory; make one with :meth:`load` or, in tests, :meth:`from_dict`."""

    def __init__(
        self,
        concepts: Sequence[Concept],
        modalities: Mapping[str, Modality],
        windows: Mapping[str, tuple[float, float]],
        default_policy: Policy,
        collections: Sequence[Collection] = (),
        language: Mapping[str, Any] | None = None,
    ) -> None:
        self.concepts = tuple(concepts)
        self.modalities = dict(modalities)
        self.windows = dict(windows)
        self.default_policy = default_policy
        self.collections = tuple(collections)
        self.language = dict(language or {})
        self._choices: dict[str | None, list[tuple[str, str]]] = {}  # by modality: sentences and the names they mean
        self._by_id = {concept.id: concept for concept in self.concepts}
        self._by_name: dict[str, list[Concept]] = {}
        for concept in self.concepts:
            self._by_name.setdefault(concept.name.lower(), []).append(concept)

    @classmethod
    def load(cls, path: str | Path | None = None) -> Terminology:
        """Read and check a terminology file.

        Args:
            path: JSON file; the bundle's own ``configs/terminology.json`` when None.

        Raises:
            ValueError: the file is missing, is not JSON, or an entry breaks a rule (which one, and how).
        """
        file = Path(path) if path is not None else DEFAULT_PATH
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"terminology: cannot read {file} ({error.strerror}); give the path of a file") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"terminology: {file} is not JSON: {error}") from error
        return cls.from_dict(content, source=file.name)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str = "terminology") -> Terminology:
        """Build from the parsed JSON, checking every rule of the format; ``source`` names it in errors."""
        return cls(**read_terminology(content, source))

    def targets(self, modality: str | None = None, kind: str | None = None, group: str | None = None) -> list[Target]:
        """All targets, in file order, of a modality, kind and group (each None: any)."""
        names = [self.modality(modality).name] if modality is not None else list(self.modalities)
        return [
            Target(concept, name)
            for concept in self.concepts
            if (kind is None or concept.kind == kind) and (group is None or concept.group == group)
            for name in names
            if name in concept.modalities
        ]

    def target(self, name: str, modality: str | None = None, kind: str | None = None) -> Target:
        """The target of a canonical name (case does not matter); anatomy before lesion, modalities in index order.

        Raises:
            ValueError: no such target; names the nearest.
        """
        wanted = [self.modality(modality).name] if modality is not None else list(self.modalities)
        for concept in self._by_name.get(normalise_sentence(name), ()):
            for candidate in wanted:
                if candidate in concept.modalities and kind in (None, concept.kind):
                    return Target(concept, candidate)
        place = f" for {modality}" if modality else ""
        nearest = ", ".join(self.nearest_names(name, modality))
        raise ValueError(f"terminology: no target named {name!r}{place}; nearest known names: {nearest}")

    def by_id(self, concept_id: int) -> Concept:
        """The concept of an id; ValueError where there is none."""
        if concept_id not in self._by_id:
            raise ValueError(f"terminology: no concept with id {concept_id}; ids run 1 to {max(self._by_id)}")
        return self._by_id[concept_id]

    def modality(self, name: str) -> Modality:
        """The modality of a name, whatever its case; ValueError names the known ones."""
        for known, modality in self.modalities.items():
            if str(name).strip().lower() in (known.lower(), *(alias.lower() for alias in modality.aliases)):
                return modality
        raise ValueError(f"terminology: unknown modality {name!r}; known: {', '.join(self.modalities)}")

    def sentences(self, target: Target | Concept) -> list[str]:
        """Everything a target is called: canonical name first, then its synonyms; normalised, without repeats."""
        concept = target.concept if hasattr(target, "concept") else target
        return list(dict.fromkeys(normalise_sentence(text) for text in (concept.name, *concept.synonyms)))

    def all_sentences(self) -> list[str]:
        """The sentences of all concepts in file order, without repeats: what an embedding bank holds."""
        return list(dict.fromkeys(text for concept in self.concepts for text in self.sentences(concept)))

    def policy(self, target: Target | str) -> Policy:
        """Inference policy of a target or of a key such as ``CT_Liver``; an unknown key gets the defaults."""
        if not isinstance(target, str):
            return target.concept.modalities[target.modality]
        modality, _, name = target.partition("_")
        for concept in self._by_name.get(name.lower(), ()):
            if modality in concept.modalities:
                return concept.modalities[modality]
        return self.default_policy

    def window(self, target: Target) -> tuple[float, float]:
        """CT window (width, level) in HU for a target: its own, else soft tissue."""
        return self.windows[target.concept.window or "soft_tissue"]

    def other_side(self, target: Target) -> Target | None:
        """The mirror image of a paired target (left kidney for right kidney); None where there is none."""
        for concept in self._by_name.get((target.concept.pair or "").lower(), ()):
            if target.modality in concept.modalities and concept.kind == target.concept.kind:
                return Target(concept, target.modality)
        return None

    def nearest_names(self, text: str, modality: str | None = None, limit: int = 5, cutoff: float = 50.0) -> list[str]:
        """Canonical names (of a modality) whose name or a synonym is most similar to ``text``, best first.

        Args:
            text: what was asked for; only its first 200 characters count.
            modality: restricts the names; None for all.
            limit: most names returned.
            cutoff: least similarity, 0..100; nothing is returned where nothing is alike.
        """
        if modality not in self._choices:
            self._choices[modality] = [
                (sentence, target.name) for target in self.targets(modality) for sentence in self.sentences(target)
            ]
        choices = self._choices[modality]
        query = normalise_sentence(text)[:200]
        texts = [sentence for sentence, _ in choices]
        found = process.extract(query, texts, scorer=fuzz.token_ratio, limit=8 * limit, score_cutoff=cutoff)
        # Of equally similar terms the shorter says less that was not asked for.
        found.sort(key=lambda item: (-item[1], len(item[0]), item[2]))
        return list(dict.fromkeys(choices[index][1] for _, _, index in found))[:limit]
