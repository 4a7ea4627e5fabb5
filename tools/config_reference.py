"""Write docs/configuration.md: every config and overlay, its keys, their defaults and what they mean.

A key means what the docstring of the argument says that it feeds (``"@key"``). Keys that feed an expression, or whose
argument says too little, are explained in ``config_meanings.json``. Run ``python tools/config_reference.py``, or
``make docs``; ``--check`` only says whether the page is up to date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer

from argument_docs import argument_docs, summary
from generated_page import BUNDLE, REPOSITORY, run, table

PAGE = REPOSITORY / "docs" / "configuration.md"
MEANINGS = Path(__file__).with_name("config_meanings.json")
NOT_PROGRAMS = ("metadata", "terminology")
LONGEST = 70  # characters of a value; the config itself has the rest

HEAD = """# Configuration reference

<!-- Written by tools/config_reference.py (make docs) from bundle/configs and the docstrings. Do not edit. -->

A run is a config and any number of overlays, read in order (`--config_file "['configs/inference.json','mine.json']"`);
later files replace keys of earlier ones. Every key can also be given on the command line (`--key value`), or to
`ConfigWorkflow(..., key=value)`. Inside parts, `::` reaches deeper: `--terminology::path mine.json`. A value that
starts with `$` is Python, `@key` is the value of another key. How the parts work together:
[architecture.md](architecture.md).
"""


@dataclass(frozen=True)
class Config:
    """One file of ``configs/``.

    Args:
        name: of the file, without its ending.
        content: as read.
    """

    name: str
    content: Mapping[str, Any]

    @property
    def comment(self) -> str:
        """What the file says of itself."""
        return str(self.content["_comment"])

    @property
    def title(self) -> str:
        """The comment's first sentence, without what the file goes over."""
        text = self.comment.partition(":")[2] if self.bases else self.comment
        return re.split(r"(?<=\.) ", text.strip())[0].rstrip(".")

    @property
    def bases(self) -> list[str]:
        """The files that it goes over or continues: those named in a comment that begins with
        ``Overlay of a.json and b.json:``."""
        head = self.comment.partition(":")[0]
        return re.findall(r"(\w+)\.json", head) if head.startswith("Overlay ") else []

    @cached_property
    def entries(self) -> dict[str, Any]:
        """Key -> value, without comments, imports and the steps of the program; nested keys are written with ``::``."""
        items = {key.lstrip("+").replace("#", "::"): value for key, value in self.content.items()}
        return {k: v for k, v in items.items() if not k.startswith("_") and k != "run" and not _is_program(v)}

    @property
    def settings(self) -> dict[str, Any]:
        """The entries that are values of one's own choice: numbers, texts, expressions."""
        return {key: value for key, value in self.entries.items() if not _builds(value)}

    @property
    def parts(self) -> dict[str, Any]:
        """The entries that build something."""
        return {key: value for key, value in self.entries.items() if _builds(value)}


def read_configs(folder: Path = BUNDLE / "configs") -> dict[str, Config]:
    """All programs and overlays of a folder by name; programs first, and each overlay after what it goes over."""
    files = {file.stem: file for file in sorted(folder.glob("*.json")) if file.stem not in NOT_PROGRAMS}
    configs = {name: Config(name, json.loads(file.read_text(encoding="utf-8"))) for name, file in files.items()}
    return dict(sorted(configs.items(), key=lambda item: (*_line(item[1], configs), item[0])))


def _line(config: Config, configs: Mapping[str, Config]) -> tuple[str, int]:
    """The program that a config belongs to, and how many overlays lie between."""
    if not config.bases:
        return config.name, 0
    lines = [_line(configs[base], configs) for base in config.bases]
    return lines[0][0], 1 + max(depth for _, depth in lines)


def ancestors(config: Config, configs: Mapping[str, Config]) -> list[Config]:
    """What an overlay goes over, nearest last, each once."""
    found: dict[str, Config] = {}
    for base in config.bases:
        if base not in configs:
            raise ValueError(f"{config.name}.json: its _comment names {base}.json, and there is no such config")
        found |= {above.name: above for above in ancestors(configs[base], configs)} | {base: configs[base]}
    return list(found.values())


def meaning(key: str, config: Config, configs: Mapping[str, Config], written: Mapping[str, str]) -> str:
    """What a key means: as written for it, else as the first argument says that it feeds, nearest config first."""
    if key in written:
        return written[key]
    for near in (config, *reversed(ancestors(config, configs))):
        for target, argument in _consumers(key, near.content):
            if text := argument_docs(target).get(argument, ""):
                return _as_in_json(text)
    return ""


def _as_in_json(text: str) -> str:
    """A docstring's words as a reader of a config knows them; one sentence goes without its full stop."""
    text = re.sub(r":\w+:`", "`", text.replace("``", "`"))
    text = text if ". " in text else text.removesuffix(".")
    return re.sub(r"\b(None|True|False)\b", lambda found: {"None": "null"}.get(found[0], found[0].lower()), text)


def _consumers(key: str, content: Any) -> Iterator[tuple[str, str]]:
    """(target, argument) of this bundle's parts that take ``@key``, as it is or through one function."""
    if isinstance(content, Mapping):
        target = content.get("_target_", "")
        for name, value in content.items():
            if isinstance(value, str) and re.fullmatch(rf"@{key}|\$\w+\(@{key}\)", value):
                if target.startswith("scripts."):
                    yield target, name
            else:
                yield from _consumers(key, value)
    elif isinstance(content, list):
        for value in content:
            yield from _consumers(key, value)


def _is_program(value: Any) -> bool:
    """Whether a value is a list of statements."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) and v.startswith("$") for v in value)


def _builds(value: Any) -> bool:
    """Whether a value has a part in it, or refers to one."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(_builds(item) or _refers(item) for item in value.values())
    return isinstance(value, list) and any(_builds(item) or _refers(item) for item in value)


def _refers(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("@", "$"))


def _shown(value: Any) -> str:
    """A value as a cell of a table."""
    if isinstance(value, (list, Mapping)) and len(value) > 8:
        return f"{len(value)} entries"
    text = value if isinstance(value, str) and value[:1] in ("$", "@", "%") else json.dumps(value)
    return f"`{text if len(text) <= LONGEST else text[:LONGEST] + '…'}`"


def _built(value: Any) -> str:
    """What an entry builds: classes, and what the first of them says of itself."""
    targets = [value["_target_"]] if isinstance(value, Mapping) and "_target_" in value else list(_targets(value))
    names = ", ".join(f"`{name.removeprefix('scripts.')}`" for name in dict.fromkeys(targets))
    if len(targets) == 1 and targets[0].startswith("scripts."):
        return f"{names}: {summary(targets[0]).replace('``', '`')}"
    return names


def _targets(value: Any) -> Iterator[str]:
    """Names of the parts in a section or list, without the parts' own parts."""
    for item in value.values() if isinstance(value, Mapping) else value:
        if isinstance(item, Mapping) and "_target_" in item:
            yield item["_target_"]
        elif isinstance(item, (Mapping, list)):
            yield from _targets(item)


def _section(config: Config, configs: Mapping[str, Config], written: Mapping[str, str]) -> str:
    above: dict[str, Any] = {}
    for base in ancestors(config, configs):
        above |= base.entries
    new = {key: value for key, value in config.settings.items() if key not in above and "::" not in key}
    changed = {key: value for key, value in config.settings.items() if key not in new}
    blocks = [f"## {config.name}", config.comment]
    if config.bases:
        blocks.append("Over " + ", ".join(f"[{base}](#{base})" for base in config.bases) + ".")
    if new:
        rows = [[f"`{key}`", _shown(value), meaning(key, config, configs, written)] for key, value in new.items()]
        blocks.append(table(["key", "default", "meaning"], rows))
    if changed:
        rows = [[f"`{k}`", _shown(v), _shown(above[k]) if k in above else ""] for k, v in changed.items()]
        blocks.append(table(["changed", "here", "before"], rows))
    if config.parts:
        rows = [[f"`{key}`", _built(value)] for key, value in config.parts.items()]
        blocks.append(table(["part", "what it is"], rows))
    return "\n\n".join(blocks)


def make_page() -> str:
    """The whole page.

    Raises:
        ValueError: a setting has no meaning, or a written one belongs to no setting.
    """
    configs = read_configs()
    written = json.loads(MEANINGS.read_text(encoding="utf-8"))
    settings = {(c.name, key) for c in configs.values() for key in c.settings if "::" not in key}
    if unused := sorted(set(written) - {key for _, key in settings}):
        raise ValueError(f"{MEANINGS.name}: no config has {', '.join(unused)}; remove what is not used")
    mute = sorted(f"{name}.{key}" for name, key in settings if not meaning(key, configs[name], configs, written))
    if mute:
        raise ValueError(f"no meaning for {', '.join(mute)}: give the argument a docstring, or add to {MEANINGS.name}")
    rows = [[f"[{config.name}](#{config.name})", config.title] for config in configs.values()]
    sections = [_section(config, configs, written) for config in configs.values()]
    return "\n\n".join([HEAD.rstrip(), table(["config", "what it does"], rows), *sections]) + "\n"


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail where it is out of date.")] = False,
) -> None:
    """Write docs/configuration.md."""
    run(PAGE, make_page, check)


if __name__ == "__main__":
    typer.run(main)
