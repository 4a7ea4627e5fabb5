"""docs/classes.md and docs/configuration.md are what their programs write, and leave nothing unexplained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import class_table
import config_reference
from argument_docs import argument_docs


def test_class_table_is_up_to_date() -> None:
    assert class_table.PAGE.read_text(encoding="utf-8") == class_table.make_page(), "run: make docs"


def test_configuration_reference_is_up_to_date_and_explains_every_key() -> None:
    """A key without a meaning makes ``make_page`` fail and name it."""
    assert config_reference.PAGE.read_text(encoding="utf-8") == config_reference.make_page(), "run: make docs"


def test_a_key_without_a_meaning_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    changes = {"no config has seeed": {"seeed": "of nothing"}, "no meaning for inference.image": {"image": ""}}
    written = json.loads(config_reference.MEANINGS.read_text(encoding="utf-8"))
    for message, change in changes.items():
        file = tmp_path / "meanings.json"
        file.write_text(json.dumps(written | change))
        monkeypatch.setattr(config_reference, "MEANINGS", file)
        with pytest.raises(ValueError, match=message):
            config_reference.make_page()


def test_an_overlay_of_an_unknown_config_is_named() -> None:
    overlay = config_reference.Config("mine", {"_comment": "Overlay of no_such.json: nothing."})
    with pytest.raises(ValueError, match=r"mine.json: its _comment names no_such.json"):
        config_reference.ancestors(overlay, {"mine": overlay})


def test_references_between_docstrings_are_followed() -> None:
    array = argument_docs("scripts.transforms.prompt_text.EncodePrompts")
    dictionary = argument_docs("scripts.transforms.prompt_text.EncodePromptsd")
    assert array["query_text"] == dictionary["query_text"] != ""
