"""Clinical shorthand written out: which stretches of a prompt stand for a plain word.

"a. subclavia" is an artery, "lacrimal gland OS" the left one, "D5" the fifth dorsal (thoracic) vertebra, and
"PI-RADS 4" behind a lesion only grades it. The rest of the text is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

GRADE = "gradeoffinding"
"""The word that stands for a grade: it says nothing behind a lesion, and makes another thing of everything else."""

_LATIN_KINDS = {"a": "artery", "aa": "artery", "art": "artery", "v": "vein", "vv": "vein"}
_LATIN_VESSEL = re.compile(
    r"\b(?P<kind>aa?|art|vv?)\.?\s+(?=(?:subclavi|carot|iliac|pulmonal|brachioceph|jugular|port|lienal|splenic"
    r"|renal|hepatic|mesenteric|femoral|vertebral|cerebr|coronari|basilar|cava|azygos|anonym)"
    r"\w*(?:a|ae|as|es|is|os|i)\b)",
    re.IGNORECASE,
)
_LATIN_OTHER = re.compile(
    r"\b(?:(?P<gland>gll?)\.?\s+(?=[a-z]{4})|(?P<muscle>mm?)\.\s*(?=glute|iliopsoas|psoas|autochth|gastrocn|sole)"
    r"|(?P<nerve>nn?)\.\s*(?=optic)|(?P<trunk>tr)\.\s*(?=brachioceph|pulmonal))",
    re.IGNORECASE,
)

_EYE = re.compile(
    r"\b(?:eyes?|eyeballs?|globes?|ocular|lac?h?rimal|lacrymal|tear|optic(?:us)?|nerves?|retina)\b", re.IGNORECASE
)
# In capitals only: "os" is Latin for bone.
_EYE_SIDE = re.compile(r"\b(?:O\.?D|O\.?S|O\.?U)\b\.?(?!\s+(?:sacr|cox|femor|il))")
_EYE_SIDES = {"OD": "right", "OS": "left", "OU": "both"}

_DORSAL = re.compile(
    r"\b(?:dorsal\s+(?:vertebra[a-z]*\s+)?(?:body\s+)?)?D[- ]?(?P<number>1[0-2]|[1-9])\b", re.IGNORECASE
)
_SPINE = re.compile(r"\b(?:vertebra[a-z]*|spin(?:e|al)|dorsal|levels?|(?:C|T|Th|L)[- ]?\d{1,2})\b", re.IGNORECASE)
_DUODENUM = re.compile(r"\bduoden", re.IGNORECASE)
_FIRST_CERTAIN = 5  # D1 to D4 are also the parts of the duodenum

_ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII")
_ROMAN_LEVEL = re.compile(
    r"\bvertebra\s+(?P<region>cervical|thoraci|lumbal|lumbar|dorsal)[a-z]*\s+(?P<roman>[IVX]+|\d{1,2})\b", re.IGNORECASE
)
_REGIONS = {"c": "c", "t": "t", "d": "t", "l": "l"}

_NUMBER = r"(?:[0-6](?:[a-cf]|\s?[-/]\s?[1-6])?|(?:iv|i{1,3})f?|x|v)"
_LINK = r"[\s:=]*(?:of\s+)?"
_GRADE = re.compile(
    r"\b(?:"
    rf"(?:pi|bi|li|ti|o|ni|vi|c|lung|node|prostate|liver|breast)[-\s]?rads(?:[\s-]*v?\d\.\d)?"
    rf"(?:\s+(?:category|score|grade|class|assessment|level))?(?:{_LINK}(?:lr-?)?{_NUMBER}\b)?"
    r"|lr-?(?:[1-5]|m|tiv|tr)"
    r"|gleason(?:\s+(?:score|grade|sum|pattern))?[\s:=]*(?:\d(?:\s?\+\s?\d)?(?:\s?=\s?\d{1,2})?)?"
    rf"|(?:isup|who|fuhrman|edmondson|steiner|nottingham)(?:\s+(?:nucle[ao]r\s+)?(?:cns\s+)?grade(?:\s+group)?){_LINK}{_NUMBER}"
    rf"|bosniak(?:\s+(?:category|type|class|grade))?{_LINK}(?:{_NUMBER})?"
    r"|fazekas(?:\s+(?:grade|score|scale))?[\s:=]*(?:[0-3])?"
    rf"|koos(?:\s+(?:grade|stage))?{_LINK}{_NUMBER}"
    r"|[cpyr]{0,2}T(?:x|is|[0-4][a-d]?)\s?N(?:x|[0-3][a-c]?)(?:\s?M(?:x|[01][a-c]?))?"
    r")(?![A-Za-z0-9])",
    re.IGNORECASE,
)


def plain_words(text: str) -> list[tuple[int, int, str]]:
    """Stretches ``(start, stop, word)`` of a text that stand for one plain word, in order and without overlap.

    Args:
        text: letters without accents, as long as the prompt is to be read.
    """
    found: list[tuple[int, int, str]] = []
    end = 0
    for start, stop, word in sorted(_all(text)):
        if start >= end:
            found.append((start, stop, word))
            end = stop
    return found


def _all(text: str) -> Iterator[tuple[int, int, str]]:
    for hit in _GRADE.finditer(text):
        yield hit.start(), hit.end(), GRADE
    for hit in _LATIN_VESSEL.finditer(text):
        yield hit.start(), hit.end(), _LATIN_KINDS[hit["kind"].lower()]
    for hit in _LATIN_OTHER.finditer(text):
        yield hit.start(), hit.end(), str(hit.lastgroup)
    for hit in _ROMAN_LEVEL.finditer(text):
        yield from _roman_level(hit)
    yield from _dorsal_levels(text)
    if _EYE.search(text):
        for hit in _EYE_SIDE.finditer(text):
            yield hit.start(), hit.end(), _EYE_SIDES[hit.group().replace(".", "")]


def _roman_level(hit: re.Match[str]) -> Iterator[tuple[int, int, str]]:
    """ "vertebra lumbalis III" is L3; what number is none stays as it is."""
    written = hit["roman"].upper()
    number = int(written) if written.isdigit() else _ROMAN.index(written) + 1 if written in _ROMAN else 0
    if number:
        yield hit.start(), hit.end(), _REGIONS[hit["region"][0].lower()] + str(number)


def _dorsal_levels(text: str) -> Iterator[tuple[int, int, str]]:
    hits = list(_DORSAL.finditer(text))
    if not hits or _DUODENUM.search(text):
        return
    certain = any(int(hit["number"]) >= _FIRST_CERTAIN for hit in hits) or _SPINE.search(text) is not None
    for hit in hits if certain else []:
        yield hit.start(), hit.end(), "t" + hit["number"]
