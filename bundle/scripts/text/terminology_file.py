"""Read the terminology's JSON into objects and check every rule of the format.

The format is described in the ``_comment`` of ``configs/terminology.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from .concepts import KINDS, SIDES, Collection, Concept, Modality, Policy


def read_terminology(content: Mapping[str, Any], source: str = "terminology") -> dict[str, Any]:
    """The arguments of ``Terminology`` from its parsed JSON.

    Args:
        content: the JSON object.
        source: what to call it in errors.

    Raises:
        ValueError: an entry breaks a rule: which one, what arrived, what was wanted.
    """
    return _Reader(content, source).read()


class _Reader:
    """Turns the JSON of a terminology into objects; every complaint says where, what arrived and what was wanted."""

    def __init__(self, content: Mapping[str, Any], source: str) -> None:
        self.content = content
        self.source = source

    def read(self) -> dict[str, Any]:
        self._require("file", self.content, {"modalities", "windows", "policy_defaults", "concepts"})
        modalities = {name: self._modality(name, entry) for name, entry in self.content["modalities"].items()}
        windows = {name: tuple(map(float, pair)) for name, pair in self.content["windows"].items()}
        default = self._policy("policy_defaults", self.content["policy_defaults"], None)
        concepts = [self._concept(entry, modalities, windows, default) for entry in self.content["concepts"]]
        self._check_unique(concepts)
        self._check_pairs(concepts)
        collections = [self._collection(entry, concepts) for entry in self.content.get("collections", [])]
        language = self.content.get("language", {})
        return {
            "concepts": concepts,
            "modalities": modalities,
            "windows": windows,
            "default_policy": default,
            "collections": collections,
            "language": language,
        }

    def _fail(self, where: str, message: str) -> ValueError:
        return ValueError(f"{self.source}: {where}: {message}")

    def _require(self, where: str, entry: Any, needed: set[str], allowed: set[str] | None = None) -> None:
        if not isinstance(entry, Mapping):
            raise self._fail(where, f"an object is wanted, got {type(entry).__name__}")
        if missing := sorted(needed - set(entry)):
            raise self._fail(where, f"missing {', '.join(missing)}")
        if allowed is not None and (extra := sorted(set(entry) - needed - allowed)):
            raise self._fail(where, f"unknown field {', '.join(extra)}; known: {', '.join(sorted(needed | allowed))}")

    def _strings(self, where: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
            raise self._fail(where, f"a list of non-empty strings is wanted, got {value!r}")
        return tuple(value)

    def _modality(self, name: str, entry: Any) -> Modality:
        where = f"modality {name!r}"
        words = ("keywords", "cased_keywords", "weak_keywords", "aliases", "context")
        self._require(where, entry, {"index", "keywords"}, set(words))
        return Modality(name, int(entry["index"]), *(self._strings(where, entry.get(key, [])) for key in words))

    def _policy(self, where: str, entry: Any, base: Policy | None) -> Policy:
        known = {item.name for item in fields(Policy)}
        self._require(where, entry, known if base is None else set(), known)
        values = {} if base is None else {key: getattr(base, key) for key in known}
        for key, value in entry.items():
            values[key] = tuple(value) if isinstance(value, list) else value
        for key in ("refine_steps", "spacing_factor", "spacing_divisor"):
            if not isinstance(values[key], tuple) or len(values[key]) != 2:
                raise self._fail(where, f"{key} is [stage 1, stage 2], got {entry.get(key)!r}")
        if not isinstance(values["stages"], tuple) or not set(values["stages"]) <= {1, 2} or not values["stages"]:
            raise self._fail(where, f"stages is [1], [2] or [1, 2], got {entry.get('stages')!r}")
        return Policy(**values)

    def _concept(
        self, entry: Any, modalities: Mapping[str, Modality], windows: Mapping[str, Any], default: Policy
    ) -> Concept:
        where = f"concept {entry.get('name', entry)!r}" if isinstance(entry, Mapping) else f"concept {entry!r}"
        optional = {"laterality", "pair", "synonyms", "window", "cues", "sideless", "generic"}
        self._require(where, entry, {"id", "name", "kind", "modalities", "group", "color"}, optional)
        if not isinstance(entry["id"], int) or entry["id"] < 1:
            raise self._fail(where, f"id is a whole number from 1, got {entry['id']!r}")
        if entry["kind"] not in KINDS:
            raise self._fail(where, f"kind is one of {', '.join(KINDS)}, got {entry['kind']!r}")
        if entry.get("laterality") not in (None, *SIDES):
            raise self._fail(where, f"laterality is left, right or null, got {entry['laterality']!r}")
        if entry.get("window") is not None and entry["window"] not in windows:
            raise self._fail(where, f"window is one of {', '.join(windows)}, got {entry['window']!r}")
        if not entry["modalities"] or set(entry["modalities"]) - set(modalities):
            raise self._fail(where, f"modalities are among {', '.join(modalities)}, got {entry['modalities']!r}")
        color = entry["color"]
        if not isinstance(color, list) or len(color) != 3 or any(c not in range(256) for c in color):
            raise self._fail(where, f"color is [r, g, b] of whole numbers 0 to 255, got {color!r}")
        return Concept(
            id=entry["id"],
            name=entry["name"],
            kind=entry["kind"],
            modalities={name: self._policy(f"{where}, {name}", p, default) for name, p in entry["modalities"].items()},
            group=entry["group"],
            color=(color[0], color[1], color[2]),
            laterality=entry.get("laterality"),
            pair=entry.get("pair"),
            synonyms=self._strings(f"{where}, synonyms", entry.get("synonyms", [])),
            window=entry.get("window"),
            cues=self._strings(f"{where}, cues", entry.get("cues", [])),
            sideless=bool(entry.get("sideless", False)),
            generic=bool(entry.get("generic", False)),
        )

    def _collection(self, entry: Any, concepts: Sequence[Concept]) -> Collection:
        where = f"collection {entry.get('name', entry)!r}" if isinstance(entry, Mapping) else f"collection {entry!r}"
        self._require(where, entry, {"name", "members"}, {"synonyms", "kind"})
        kind = entry.get("kind", "anatomy")
        known = {concept.name for concept in concepts if concept.kind == kind}
        if strangers := [name for name in entry["members"] if name not in known]:
            raise self._fail(where, f"members are names of {kind} concepts; unknown: {', '.join(strangers)}")
        return Collection(
            entry["name"], self._strings(where, entry.get("synonyms", [])), self._strings(where, entry["members"]), kind
        )

    def _check_unique(self, concepts: Sequence[Concept]) -> None:
        ids: dict[int, str] = {}
        names: set[tuple[str, str, str]] = set()
        for concept in concepts:
            if concept.id in ids:
                raise self._fail(f"concept {concept.name!r}", f"id {concept.id} is taken by {ids[concept.id]!r}")
            ids[concept.id] = concept.name
            for modality in concept.modalities:
                key = (modality, concept.kind, concept.name.lower())
                if key in names:
                    raise self._fail(f"concept {concept.name!r}", f"{modality} {concept.kind} is described twice")
                names.add(key)

    def _check_pairs(self, concepts: Sequence[Concept]) -> None:
        by_name = {(concept.kind, concept.name): concept for concept in concepts}
        for concept in concepts:
            if concept.pair is None:
                continue
            other = by_name.get((concept.kind, concept.pair))
            if other is None or other.pair != concept.name:
                raise self._fail(f"concept {concept.name!r}", f"pair {concept.pair!r} must exist and name it in turn")
            if {concept.laterality, other.laterality} != set(SIDES):
                raise self._fail(f"concept {concept.name!r}", "a pair is one left and one right concept")
