"""Rules between the entries of a terminology: what must be unique, what must exist, what would be ambiguous."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from .checks import Checker
from .codes import check_pair
from .concepts import SIDES, Collection, Concept, Modality, normalise_sentence

DEFAULT_WINDOW = "soft_tissue"  # what a concept without a window of its own gets


def check_modalities(modalities: Mapping[str, Modality], check: Checker) -> None:
    """No index, name, alias or keyword belongs to two modalities."""
    indices: dict[int, str] = {}
    names: dict[str, str] = {}
    keywords: dict[str, str] = {}
    if not modalities:
        raise check.error("modalities", "at least one is wanted, got none")
    for name, modality in modalities.items():
        where = f"modality {name!r}"
        if modality.index in indices:
            raise check.error(where, f"index {modality.index} is taken by {indices[modality.index]!r}")
        indices[modality.index] = name
        for text in (name, *modality.aliases):
            if names.setdefault(text.lower(), name) != name:
                raise check.error(where, f"{text!r} is already a name of {names[text.lower()]!r}")
        for text in modality.keywords:
            if keywords.setdefault(text.lower(), name) != name:
                raise check.error(where, f"keyword {text!r} already names {keywords[text.lower()]!r}")


def check_concepts(concepts: Sequence[Concept], check: Checker) -> None:
    """Unique ids and names, pairs that mirror each other, synonyms that mean one concept."""
    _check_ids_and_names(concepts, check)
    _check_pairs(concepts, check)
    _check_synonyms(concepts, check)


def _check_ids_and_names(concepts: Sequence[Concept], check: Checker) -> None:
    ids: dict[int, str] = {}
    names: set[tuple[str, str, str]] = set()
    for concept in concepts:
        where = f"concept {concept.name!r}"
        if concept.id in ids:
            raise check.error(where, f"id {concept.id} is taken by {ids[concept.id]!r}")
        ids[concept.id] = concept.name
        for modality in concept.modalities:
            key = (modality, concept.kind, normalise_sentence(concept.name))
            if key in names:
                raise check.error(where, f"{modality} {concept.kind} is described twice")
            names.add(key)


def _check_pairs(concepts: Sequence[Concept], check: Checker) -> None:
    by_name = {(concept.kind, concept.name): concept for concept in concepts}
    for concept in concepts:
        if concept.pair is None:
            continue
        where = f"concept {concept.name!r}"
        other = by_name.get((concept.kind, concept.pair))
        if other is None or other.pair != concept.name:
            raise check.error(where, f"pair {concept.pair!r} must exist and name it in turn")
        if {concept.laterality, other.laterality} != set(SIDES):
            raise check.error(where, "a pair is one left and one right concept")
        check_pair(where, concept.codes, other.codes, check)


def _check_synonyms(concepts: Sequence[Concept], check: Checker) -> None:
    """A synonym belongs to one concept of a modality.

    Two things decide between concepts that share a term, so these are allowed: the canonical name goes before a
    synonym, and ``cues`` choose between kinds.
    """
    owners: dict[tuple[str, str], Concept] = {}
    for concept in concepts:
        where = f"concept {concept.name!r}"
        terms = [normalise_sentence(text) for text in (concept.name, *concept.synonyms)]
        if len(set(terms)) < len(terms):
            twice = next(term for term in terms if terms.count(term) > 1)
            raise check.error(where, f"{twice!r} is given twice; once is enough")
        for term in terms[1:]:
            for modality in concept.modalities:
                owner = owners.setdefault((modality, term), concept)
                decided = owner.kind != concept.kind and (owner.cues or concept.cues)
                if owner is not concept and not decided:
                    raise check.error(where, f"synonym {term!r} already means {owner.name!r} in {modality}")


def check_collections(
    collections: Sequence[Collection], concepts: Sequence[Concept], modalities: Mapping[str, Modality], check: Checker
) -> None:
    """Members exist and are named once; no word is also another collection's, or a concept's of the same modality."""
    terms: dict[str, str] = {}
    of_concepts = {name: dict(_terms(concepts, name)) for name in modalities}
    for collection in collections:
        where = f"collection {collection.name!r}"
        known = {concept.name: concept for concept in concepts if concept.kind == collection.kind}
        if strangers := [name for name in collection.members if name not in known]:
            raise check.error(
                where, f"members are names of {collection.kind} concepts; unknown: {', '.join(strangers)}"
            )
        if not collection.members or len(set(collection.members)) < len(collection.members):
            raise check.error(where, f"members are wanted, each once, got {', '.join(collection.members) or 'none'}")
        shared = [name for name in modalities if all(name in known[item].modalities for item in collection.members)]
        if not shared:
            raise check.error(where, "no modality has all its members, so it could never be asked for")
        for text in (collection.name, *collection.synonyms):
            term = normalise_sentence(text)
            if term in terms:
                raise check.error(where, f"{text!r} already names the collection {terms[term]!r}")
            if owner := next((of_concepts[name][term] for name in shared if term in of_concepts[name]), None):
                raise check.error(where, f"{text!r} already means the concept {owner!r}")
            terms[term] = collection.name


def _terms(concepts: Sequence[Concept], modality: str) -> Iterator[tuple[str, str]]:
    for concept in concepts:
        if modality in concept.modalities:
            for text in (concept.name, *concept.synonyms):
                yield normalise_sentence(text), concept.name
