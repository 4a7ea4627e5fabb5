"""What an exported network says of itself: the sizes that it takes, and what it was made from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from scripts.errors import InputError

FORMAT = 1


@dataclass(frozen=True)
class ProgramFacts:
    """Facts that travel in the file, as JSON.

    Attributes:
        divisor: every side of a patch is a multiple of this many voxels.
        query_width: length L of a query vector.
        weights: name of the weights file.
        weights_sha256: its hash, hexadecimal.
        bundle: name and version of the bundle.
        torch: version of torch that wrote the file.
        format: of these facts.
    """

    divisor: int
    query_width: int
    weights: str
    weights_sha256: str
    bundle: str
    torch: str
    format: int = FORMAT

    @property
    def smallest_side(self) -> int:
        """Fewest voxels of a patch's side: torch.export takes a coarsest grid of one cell for a constant."""
        return 2 * self.divisor

    def to_json(self) -> str:
        """As ``from_json`` reads them."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> ProgramFacts:
        """Read the facts of a file.

        Raises:
            InputError: other entries, or other types, than those above, or another format.
        """
        try:
            found = json.loads(text)
            facts = cls(**found)
        except (ValueError, TypeError, RecursionError) as e:
            raise InputError(f"exported network: its description cannot be read ({e}): export it again") from e
        kinds = {field.name: int if field.type == "int" else str for field in fields(cls)}
        wrong = [name for name, kind in kinds.items() if type(getattr(facts, name)) is not kind]
        if wrong or facts.format != FORMAT or min(facts.divisor, facts.query_width) < 1:
            raise InputError(
                f"exported network: wanted a description of format {FORMAT}, got format {facts.format!r}"
                f"{' with unusable ' + ', '.join(wrong) if wrong else ''}: export it again"
            )
        return facts
