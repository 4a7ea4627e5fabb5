"""What one case is asked for, as plain text that travels through MONAI's data loaders unchanged.

Collating and decollating a batch takes lists and objects apart; a string stays whole.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from scripts.errors import InputError

if TYPE_CHECKING:
    from scripts.text import Target


@dataclass(frozen=True)
class RequestedTarget:
    """One structure to segment and how it was understood from the text (fields as in ``scripts.text.Target``)."""

    name: str
    id: int
    modality: str
    kind: str
    key: str
    matched: str
    how: str
    score: float
    color: tuple[int, ...]
    window: str | None = None
    sentence: str = ""
    """What is embedded to ask the network: the canonical sentence or the user's own, see ``transforms.prompt_text``."""
    trained: bool = True
    """Whether the weights know it; asked all the same, the answer means nothing."""


@dataclass(frozen=True)
class Request:
    """The user's words and the targets they stand for, in the order asked."""

    text: tuple[str, ...]
    modality: str
    targets: tuple[RequestedTarget, ...]


def as_texts(prompts: object) -> tuple[str, ...]:
    """The user's prompts as non-empty strings; one string or a sequence of them.

    Args:
        prompts: whatever came from the command line, a config or a viewer.

    Raises:
        InputError: nothing asked for, or something that is no text.
    """
    items = (prompts,) if isinstance(prompts, str) else prompts
    if not isinstance(items, (list, tuple)):
        raise InputError(f"prompts must be a text or a list of texts, got {prompts!r}")
    for item in items:
        if not isinstance(item, str):
            raise InputError(f"prompts must be texts, got {item!r}: put quotes around it")
    texts = tuple(item.strip() for item in items if item.strip())
    if not texts:
        raise InputError("no structure was asked for: name at least one in prompts, such as ['left hippocampus']")
    return texts


def as_flag(value: object) -> bool:
    """True or False from a config or a command line, where ``--save_masks false`` arrives as a text.

    Raises:
        InputError: neither.
    """
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if str(value).strip().lower() not in known:
        raise InputError(f"wanted true or false, got {value!r}")
    return known[str(value).strip().lower()]


def as_stages(value: object) -> tuple[int, ...]:
    """The stages to run, from a config (``[1, 2]``) or a command line (``1``, ``2``, ``both``).

    Raises:
        InputError: anything else.
    """
    if str(value).strip().lower() in ("both", "all"):
        return 1, 2
    items = value if isinstance(value, (list, tuple)) else str(value).replace(",", " ").split()
    numbers = tuple(sorted({int(item) for item in items if str(item).strip() in ("1", "2")}))
    if not numbers or len(numbers) < len(items):
        raise InputError(f"stages is 1, 2 or both, got {value!r}")
    return numbers


def make_request(
    text: Sequence[str],
    targets: Sequence[Target],
    sentences: Sequence[str] | None = None,
    untrained: Collection[str] = (),
) -> Request:
    """Bundle parsed targets.

    Args:
        text: the user's prompts.
        targets: what they were understood as.
        sentences: what to embed for each target; its canonical sentence when None.
        untrained: names of those that the weights do not know.

    Raises:
        InputError: targets of several modalities (one image has one), or two that share a label value.
    """
    modalities = sorted({target.modality for target in targets})
    if len(modalities) > 1:
        raise InputError(f"the prompts name targets of {' and '.join(modalities)}, one image has one modality")
    records = tuple(
        RequestedTarget(
            name=target.name,
            id=target.id,
            modality=target.modality,
            kind=target.kind,
            key=target.key,
            matched=target.matched,
            how=target.how,
            score=round(float(target.score), 4),
            color=tuple(target.color),
            window=target.concept.window,
            sentence=sentence,
            trained=target.name not in untrained,
        )
        for target, sentence in zip(targets, sentences or [target.sentence for target in targets], strict=True)
    )
    if len({record.id for record in records}) < len(records):
        raise InputError(f"two targets share a label value: {[(record.name, record.id) for record in records]}")
    return Request(tuple(text), modalities[0], records)


def encode_request(request: Request) -> str:
    """A request as JSON text."""
    return json.dumps(asdict(request))


def decode_request(text: str) -> Request:
    """The request that ``encode_request`` wrote."""
    fields = json.loads(text)
    targets = (RequestedTarget(**{**target, "color": tuple(target["color"])}) for target in fields["targets"])
    return Request(tuple(fields["text"]), fields["modality"], tuple(targets))
