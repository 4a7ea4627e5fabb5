"""What is imported is declared, the core needs no extra, and the command line starts without torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

REPOSITORY = Path(__file__).resolve().parents[2]
OWN = {"scripts", "lib", "clinic"}
# Where an import is inside a function and its absence is answered with one clear line: module -> extra.
OPTIONAL = {"nilearn": "demo", "playwright": "e2e"}
REFUSE = """
import importlib, json, sys

class Refuse:
    def __init__(self, names):
        self.names = names
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is no core dependency", name=name)

refused, modules = json.loads(sys.stdin.read())
sys.meta_path.insert(0, Refuse(set(refused)))
for module in modules:
    importlib.import_module(module)
"""


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def declared(*extras: str) -> list[Requirement]:
    """The requirements of the core, and of extras."""
    lines = [*project()["dependencies"], *(line for e in extras for line in project()["optional-dependencies"][e])]
    found = [Requirement(line) for line in lines]
    return [requirement for requirement in found if requirement.marker is None or requirement.marker.evaluate()]


def with_all_they_need(requirements: Iterable[Requirement]) -> set[str]:
    """Names of the distributions that the requirements bring."""
    found: set[str] = set()
    waiting = [(requirement.name, requirement.extras) for requirement in requirements]
    while waiting:
        name, extras = waiting.pop()
        if canonicalize_name(name) in found and not extras:
            continue
        found.add(canonicalize_name(name))
        try:
            needs = [Requirement(line) for line in distribution(name).requires or ()]
        except PackageNotFoundError:
            continue
        for need in needs:
            environments = [{"extra": extra} for extra in (*extras, "")]
            wanted = need.marker is None or any(need.marker.evaluate(environment) for environment in environments)
            if wanted and canonicalize_name(need.name) not in found:
                waiting.append((need.name, need.extras))
    return found


def imports(folder: Path) -> Iterator[tuple[str, Path, bool]]:
    """(top-level module of others, file, whether at the file's own top level) of every import in a folder."""
    for file in sorted(folder.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        top = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            for name in {name.partition(".")[0] for name in names} - OWN - sys.stdlib_module_names:
                yield name, file.relative_to(REPOSITORY), id(node) in top


@cache
def providers() -> Mapping[str, list[str]]:
    """Module -> distributions that have it, by their canonical names."""
    return {name: [canonicalize_name(d) for d in found] for name, found in packages_distributions().items()}


def test_every_import_of_the_bundle_is_a_core_dependency() -> None:
    """Direct imports are declared directly: what another package happens to bring may go with its next version."""
    names = {canonicalize_name(requirement.name) for requirement in declared()}
    parts = {owner for owners in providers().values() for owner in owners if owner.rpartition("-")[0] in names}
    undeclared = [
        f"{file}: {name}"
        for name, file, at_top in imports(REPOSITORY / "bundle" / "scripts")
        if not (names | parts).intersection(providers().get(name, ())) and (at_top or name not in OPTIONAL)
    ]  # some are delivered in parts, such as itk in itk-core
    assert not undeclared


def test_every_import_of_the_app_is_declared() -> None:
    """MONAI Label is a framework: what it serves with (FastAPI, PyJWT, ...) comes with it."""
    if not providers().get("monailabel"):
        pytest.skip("MONAI Label is not installed: make setup-label")
    names = with_all_they_need(declared("label"))
    undeclared = [
        f"{file}: {name}"
        for name, file, at_top in imports(REPOSITORY / "apps" / "medal_s_label")
        if not names.intersection(providers().get(name, ())) and (at_top or name not in OPTIONAL)
    ]
    assert not undeclared


def test_optional_imports_belong_to_their_extras() -> None:
    for module, extra in OPTIONAL.items():
        assert module in {requirement.name for requirement in declared(extra)}


def python(code: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, input=given, cwd=REPOSITORY / "bundle", capture_output=True, text=True)


@pytest.mark.slow
def test_every_module_of_the_bundle_imports_with_the_core_alone() -> None:
    """Inference and training run without MONAI Label, nilearn, pytest and all else that only the extras bring."""
    core = with_all_they_need(declared())
    refused = [name for name, owners in providers().items() if not core.intersection(owners)]
    assert {"pytest", "nilearn"} & set(providers()) <= set(refused)
    folder = REPOSITORY / "bundle"
    files = sorted((folder / "scripts").rglob("*.py"))
    modules = [".".join(file.relative_to(folder).with_suffix("").parts).removesuffix(".__init__") for file in files]
    done = python(REFUSE, json.dumps([refused, modules]))
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("words", [["--help"], ["targets", "liver"], ["segment", "--help"], ["parse", "liver"]])
def test_the_command_line_starts_without_torch(words: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["scripts.cli", *{words!r}]
import runpy
try:
    runpy.run_module("scripts.cli", run_name="__main__", alter_sys=True)
except SystemExit as e:
    assert not e.code, e.code
slow = {{"torch", "monai", "ignite", "transformers", "matplotlib", "itk"}} & set(sys.modules)
assert not slow, slow
"""
    done = python(code)
    assert done.returncode == 0, done.stderr[-2000:]
