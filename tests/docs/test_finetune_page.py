"""docs/finetune.md word for word: its files and commands, on ten tiny heads with a structure not known before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = "finetune.md"


@pytest.mark.slow
def test_the_worked_example_runs(
    tiny: Path,
    write_cases: Callable[[Path, int], None],
    blocks: Callable[[str], list[Any]],
    follow: Callable[..., list[str]],
    small_runs: dict[str, dict[str, Any]],
) -> None:
    cases = tiny / "my_cases"
    write_cases(cases, 10)
    content = json.loads(next(block.text for block in blocks(PAGE) if block.language == "json"))
    content["training"] = [
        {"image": f"images/case_{index}.nii.gz", "label": f"labels/case_{index}.nii.gz"} for index in range(8)
    ]
    (cases / "cases.json").write_text(json.dumps(content))
    follow(PAGE, tiny / "bundle", small_runs)
    assert (cases / "run" / "model.pt").is_file()
    assert (cases / "run" / "previews" / "truth.png").is_file()
    report = json.loads(next((cases / "answer").rglob("*_seg.json")).read_text())
    found = {entry["name"]: entry["label"] for entry in report["structures"]}
    assert found == {"Pineal gland": 1001, "Brain-stem": 13}
