"""Requests made by hand, without parser or terminology."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from scripts.request import Request, RequestedTarget, encode_request


@pytest.fixture
def make_request_text() -> Callable[..., str]:
    """Build an encoded request from (name, id, modality, window) tuples."""

    def make(targets: Sequence[tuple[str, int, str, str | None]]) -> str:
        records = tuple(
            RequestedTarget(
                name, id_, modality, "anatomy", f"{modality}_{name}", name, "name", 1.0, (255, 0, 0), window
            )
            for name, id_, modality, window in targets
        )
        return encode_request(Request(("text",), records[0].modality, records))

    return make
