"""Read the DICOM codes of concepts and check them: known category, valid SNOMED CT identifier, short meaning.

In the file a code is ``[value, meaning]``; the coding scheme, the categories and the codes of the two sides are
written once, in the section ``coding``. A concept's ``laterality`` becomes a modifier by itself: of the region where
one is given (cyst in the *left* kidney), else of the type (*left* kidney).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .checks import Checker
from .concepts import SIDES, Code, Codes

MAX_MEANING = 64  # characters: Code Meaning has value representation LO
MAX_VALUE = 16  # characters: Code Value has value representation SH

# Verhoeff's check digit over the dihedral group D5, as SNOMED CT's identifiers carry it (SNOMED CT Technical
# Implementation Guide, appendix "Check-digit computation").
_MULTIPLY = (
    "0123456789",
    "1234067895",
    "2340178956",
    "3401289567",
    "4012395678",
    "5987604321",
    "6598710432",
    "7659821043",
    "8765932104",
    "9876543210",
)
_PERMUTE = "1576283094"


def is_snomed_identifier(value: str) -> bool:
    """Whether ``value`` is made like a SNOMED CT identifier: 6 to 18 digits, the last one the right check digit."""
    if not (value.isascii() and value.isdigit() and 6 <= len(value) <= 18) or value.startswith("0"):
        return False
    check = "0"
    for place, digit in enumerate(reversed(value)):
        for _ in range(place % 8):
            digit = _PERMUTE[int(digit)]
        check = _MULTIPLY[int(check)][int(digit)]
    return check == "0"


class CodeReader:
    """Reads ``coding`` once, then the ``codes`` of every concept.

    Args:
        section: the section ``coding``; None where the file has none, and then no concept may have codes.
        check: raises the errors.
    """

    def __init__(self, section: Any, check: Checker) -> None:
        self._check = check
        self._known: dict[str, Code] = {}
        self.present = section is not None
        if section is None:
            return
        section = check.fields("coding", section, {"scheme", "categories", "sides"}, {"_comment"})
        self._scheme = check.text("coding, scheme", section["scheme"])
        self._categories = {
            check.text("coding, categories", name): self._code(f"coding, category {name!r}", pair)
            for name, pair in check.fields("coding, categories", section["categories"]).items()
        }
        sides = check.fields("coding, sides", section["sides"], SIDES, ())
        self._sides = {side: self._code(f"coding, side {side!r}", sides[side]) for side in SIDES}

    def read(self, where: str, entry: Any, laterality: str | None) -> Codes:
        """The codes of one concept.

        Raises:
            ValueError: a code breaks a rule; ``where`` (the concept) is named.
        """
        check = self._check
        if not self.present:
            raise check.error(where, "codes need the section 'coding' (scheme, categories, sides); add it to the file")
        entry = check.fields(where, entry, {"category", "type"}, {"modifier", "region"})
        category = entry["category"]
        if not isinstance(category, str) or category not in self._categories:
            raise check.error(where, f"category is one of {', '.join(self._categories)}, got {category!r}")
        region = self._code(f"{where}, region", entry["region"]) if "region" in entry else None
        modifier = self._code(f"{where}, modifier", entry["modifier"]) if "modifier" in entry else None
        side = self._sides[laterality] if laterality is not None else None
        if modifier is not None and side is not None and region is None:
            raise check.error(where, f"modifier is the side already ({side.meaning}, from laterality); leave it out")
        return Codes(
            category=self._categories[category],
            type=self._code(f"{where}, type", entry["type"]),
            modifier=modifier if region is not None or side is None else side,
            region=region,
            region_modifier=side if region is not None else None,
        )

    def _code(self, where: str, pair: Any) -> Code:
        check = self._check
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(item, str) for item in pair):
            raise check.error(where, f'a code is ["value", "meaning"], got {pair!r}')
        value, meaning = pair
        known = self._known.get(value)
        if known is not None and known.meaning == meaning:
            return known
        if known is not None:
            raise check.error(where, f"{value} means {known.meaning!r} elsewhere in the file, got {meaning!r}")
        if self._scheme == "SCT" and not is_snomed_identifier(value):
            raise check.error(where, f"a SNOMED CT identifier (digits with a check digit) is wanted, got {value!r}")
        if not 0 < len(value) <= MAX_VALUE:
            raise check.error(where, f"a value of at most {MAX_VALUE} characters is wanted, got {value!r}")
        if not 0 < len(check.text(f"{where}, meaning", meaning)) <= MAX_MEANING or "\\" in meaning:
            raise check.error(
                where, f"a meaning of at most {MAX_MEANING} characters, no backslash, is wanted: {meaning!r}"
            )
        self._known[value] = Code(value, self._scheme, meaning)
        return self._known[value]


def check_pair(where: str, one: Codes | None, other: Codes | None, check: Checker) -> None:
    """The left and the right of a structure carry the same codes but for the side; ValueError where they do not."""

    def shared(codes: Codes | None) -> Mapping[str, Code | None] | None:
        if codes is None:
            return None
        qualifier = codes.modifier if codes.region is not None else None
        return {"category": codes.category, "type": codes.type, "region": codes.region, "modifier": qualifier}

    mine, theirs = shared(one), shared(other)
    if mine is None or theirs is None:
        if mine is not theirs:
            raise check.error(where, "one of a pair has codes, the other has none; give both the same")
        return
    if wrong := [name for name in mine if mine[name] != theirs[name]]:
        raise check.error(where, f"a pair shares its codes (the side is added by itself); {', '.join(wrong)} differ")
