"""Read the terminology's JSON into objects and check every rule of the format, which docs/terminology.md describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .checks import Checker
from .codes import CodeReader
from .concepts import KINDS, SIDES, Collection, Concept, Modality, Policy
from .terminology_rules import DEFAULT_WINDOW, check_collections, check_concepts, check_modalities

VERSION = 1
SECTIONS = {"version", "modalities", "windows", "policy_defaults", "concepts"}
OPTIONAL_SECTIONS = {"_comment", "coding", "groups", "collections", "language"}

# The shape of each part of the language; all words are in lower case.
LANGUAGE = {
    "variants": "words",  # {word: word}
    "plurals": "words",
    "phrases": "words",
    "sides": "sides",  # {word: left, right or both}
    "sequences": "lists",  # [[word, ...], ...]
    "trailers": "groups",  # {group: [word, ...]}
    "compounds": "list",  # [word, ...]
    "separators": "list",
    "skip": "list",
    "prepositions": "list",
    "location": "list",
    "exclusions": "list",
    "verb_suffixes": "list",
    "noun_suffixes": "list",
    "adjective_suffixes": "list",
    "pathology_suffixes": "list",
    "carriers": "list",
    "fillers": "list",
    "other_terms": "list",
    "plain_words": "list",
}


def read_terminology(content: Mapping[str, Any], source: str = "terminology") -> dict[str, Any]:
    """The arguments of ``Terminology`` from its parsed JSON.

    Args:
        content: the JSON object.
        source: what to call it in errors.

    Raises:
        ValueError: an entry breaks a rule: which one, what arrived, what was wanted.
    """
    return _Reader(content, Checker(source)).read()


class _Reader:
    """Turns the JSON of a terminology into objects, section by section."""

    def __init__(self, content: Mapping[str, Any], check: Checker) -> None:
        self.check = check
        self.content = check.fields("file", content, SECTIONS, OPTIONAL_SECTIONS)
        if content["version"] != VERSION:
            raise check.error("version", f"this program reads version {VERSION}, got {content['version']!r}")

    def read(self) -> dict[str, Any]:
        check, content = self.check, self.content
        entries = check.fields("modalities", content["modalities"]).items()
        self.modalities = {check.text("modalities", name): self._modality(name, entry) for name, entry in entries}
        check_modalities(self.modalities, check)
        entries = check.fields("windows", content["windows"], {DEFAULT_WINDOW}).items()
        self.windows = {name: self._window(f"window {name!r}", entry) for name, entry in entries}
        self.default_policy = self._policy("policy_defaults", content["policy_defaults"], None)
        self.groups = check.texts("groups", content["groups"]) if "groups" in content else None
        self.codes = CodeReader(content.get("coding"), check)
        concepts = [self._concept(entry) for entry in self._list("concepts")]
        check_concepts(concepts, check)
        collections = [self._collection(entry) for entry in self._list("collections")]
        check_collections(collections, concepts, self.modalities, check)
        return {
            "concepts": concepts,
            "modalities": self.modalities,
            "windows": self.windows,
            "default_policy": self.default_policy,
            "collections": collections,
            "language": self._language(content.get("language", {})),
        }

    def _list(self, section: str) -> list[Any]:
        entries = self.content.get(section, [])
        if not isinstance(entries, list):
            raise self.check.error(section, f"a list of objects is wanted, got {type(entries).__name__}")
        return entries

    def _modality(self, name: str, entry: Any) -> Modality:
        check, where = self.check, f"modality {name!r}"
        words = ("keywords", "cased_keywords", "weak_keywords", "aliases", "context")
        check.fields(where, entry, {"index", "keywords"}, words)
        lower = {"weak_keywords", "context"}
        lists = (check.texts(f"{where}, {key}", entry.get(key, []), lower=key in lower) for key in words)
        return Modality(name, check.whole(f"{where}, index", entry["index"], 0), *lists)

    def _window(self, where: str, entry: Any) -> tuple[float, float]:
        if not isinstance(entry, list) or len(entry) != 2:
            raise self.check.error(where, f"[width, level] in HU is wanted, got {entry!r}")
        width, level = entry
        return self.check.number(f"{where}, width", width, above=0), self.check.number(f"{where}, level", level)

    def _policy(self, where: str, entry: Any, base: Policy | None) -> Policy:
        check = self.check
        known = {item.name for item in fields(Policy)}
        check.fields(where, entry, known if base is None else (), known)
        values = {} if base is None else {key: getattr(base, key) for key in known}
        return Policy(**(values | {key: self._policy_value(where, key, value) for key, value in entry.items()}))

    def _policy_value(self, where: str, key: str, value: Any) -> Any:
        check = self.check
        if key in ("unit_spacing", "filter_components"):
            return check.flag(f"{where}, {key}", value)
        if key == "stages":
            if value not in ([1], [2], [1, 2]):
                raise check.error(where, f"stages is [1], [2] or [1, 2], got {value!r}")
            return tuple(value)
        if key in ("refine_steps", "spacing_factor", "spacing_divisor"):
            if not isinstance(value, list) or len(value) != 2:
                raise check.error(where, f"{key} is [stage 1, stage 2], got {value!r}")
            if key == "refine_steps":
                return tuple(check.whole(f"{where}, {key}", item, 0) for item in value)
            return tuple(check.number(f"{where}, {key}", item, above=0) for item in value)
        if key == "roi_margin":
            return check.number(f"{where}, {key}", value, lowest=1)
        return check.number(f"{where}, {key}", value, above=0)

    def _concept(self, entry: Any) -> Concept:
        check = self.check
        where = f"concept {entry.get('name', entry)!r}" if isinstance(entry, Mapping) else f"concept {entry!r}"
        optional = {"laterality", "pair", "synonyms", "window", "cues", "sideless", "generic", "codes"}
        check.fields(where, entry, {"id", "name", "kind", "modalities", "group", "color"}, optional)
        if entry["kind"] not in KINDS:
            raise check.error(where, f"kind is one of {', '.join(KINDS)}, got {entry['kind']!r}")
        if isinstance(entry["id"], bool) or not isinstance(entry["id"], int) or entry["id"] < 1:
            raise check.error(where, f"id is a whole number from 1, got {entry['id']!r}")
        laterality = entry.get("laterality")
        if laterality not in (None, *SIDES):
            raise check.error(where, f"laterality is left, right or null, got {laterality!r}")
        return Concept(
            id=entry["id"],
            name=check.text(f"{where}, name", entry["name"]),
            kind=entry["kind"],
            modalities=self._concept_modalities(where, entry["modalities"]),
            group=self._group(where, entry["group"]),
            color=self._color(where, entry["color"]),
            laterality=laterality,
            pair=check.text(f"{where}, pair", entry["pair"]) if entry.get("pair") is not None else None,
            synonyms=check.texts(f"{where}, synonyms", entry.get("synonyms", [])),
            window=self._window_name(where, entry.get("window")),
            cues=check.texts(f"{where}, cues", entry.get("cues", []), lower=True),
            sideless=check.flag(f"{where}, sideless", entry.get("sideless", False)),
            generic=check.flag(f"{where}, generic", entry.get("generic", False)),
            codes=self.codes.read(f"{where}, codes", entry["codes"], laterality) if "codes" in entry else None,
        )

    def _concept_modalities(self, where: str, entry: Any) -> dict[str, Policy]:
        if not isinstance(entry, Mapping) or not entry or set(entry) - set(self.modalities):
            raise self.check.error(where, f"modalities are among {', '.join(self.modalities)}, got {entry!r}")
        return {name: self._policy(f"{where}, {name}", policy, self.default_policy) for name, policy in entry.items()}

    def _group(self, where: str, group: Any) -> str:
        if self.groups is not None and group not in self.groups:
            raise self.check.error(where, f"group is one of {', '.join(self.groups)}, got {group!r}")
        return self.check.text(f"{where}, group", group)

    def _color(self, where: str, color: Any) -> tuple[int, int, int]:
        whole = isinstance(color, list) and all(isinstance(c, int) and not isinstance(c, bool) for c in color)
        if not whole or len(color) != 3 or any(not 0 <= c <= 255 for c in color):
            raise self.check.error(where, f"color is [r, g, b] of whole numbers 0 to 255, got {color!r}")
        return color[0], color[1], color[2]

    def _window_name(self, where: str, name: Any) -> str | None:
        if name is not None and (not isinstance(name, str) or name not in self.windows):
            raise self.check.error(where, f"window is one of {', '.join(self.windows)}, got {name!r}")
        return name

    def _collection(self, entry: Any) -> Collection:
        check = self.check
        where = f"collection {entry.get('name', entry)!r}" if isinstance(entry, Mapping) else f"collection {entry!r}"
        check.fields(where, entry, {"name", "members"}, {"synonyms", "kind"})
        kind = entry.get("kind", "anatomy")
        if kind not in KINDS:
            raise check.error(where, f"kind is one of {', '.join(KINDS)}, got {kind!r}")
        return Collection(
            check.text(f"{where}, name", entry["name"]),
            check.texts(f"{where}, synonyms", entry.get("synonyms", [])),
            check.texts(f"{where}, members", entry["members"]),
            kind,
        )

    def _language(self, section: Any) -> dict[str, Any]:
        self.check.fields("language", section, (), LANGUAGE)
        for name, value in section.items():
            self._language_part(f"language, {name}", LANGUAGE[name], value)
        return dict(section)

    def _language_part(self, where: str, shape: str, value: Any) -> None:
        check = self.check
        if shape == "list":
            check.texts(where, value, lower=True)
        elif shape == "lists":
            if not isinstance(value, list):
                raise check.error(where, f"a list of lists of words is wanted, got {value!r}")
            for words in value:
                check.texts(where, words, lower=True)
        elif shape == "groups":
            for group, words in check.fields(where, value).items():
                self._group(where, group)
                check.texts(f"{where}, {group}", words, lower=True)
        else:
            words = check.fields(where, value)
            check.texts(where, list(words), lower=True)
            check.texts(where, list(words.values()), lower=True)
            if shape == "sides" and (wrong := set(words.values()) - {*SIDES, "both"}):
                raise check.error(where, f"a side word stands for left, right or both, got {', '.join(sorted(wrong))}")
