"""The bundle's metadata and files as the model zoo asks for them, and in agreement with what they tell of."""

from __future__ import annotations

import ast
import json
import logging.config
import re
import shutil
import sys
from fnmatch import fnmatch
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from monai.bundle import ConfigParser, verify_metadata
from monai.bundle.properties import InferProperties, TrainProperties
from monai.utils import BundleProperty, BundlePropertyConfig
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.metadata import trained_structures
from scripts.text import Terminology

SCHEMA = Path(__file__).with_name("metadata_schema.json")
FRAMEWORKS = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
# The demo alone needs it, for its image, and says so where it is absent.
ONLY_IF_ASKED = {"nilearn"}

SECTIONS = [
    *("Authors", "Tags", "Model Description", "Data", "Performance", "Additional Usage Steps"),
    *("System Configuration", "Limitations", "Citation Info", "References", "License"),
]


@pytest.fixture(scope="module")
def metadata(bundle_dir: Path) -> dict[str, Any]:
    return json.loads((bundle_dir / "configs" / "metadata.json").read_text())


@pytest.fixture(scope="module")
def project(bundle_dir: Path) -> dict[str, Any]:
    """``pyproject.toml``."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    return tomllib.loads((bundle_dir.parent / "pyproject.toml").read_text())["project"]


def packages(metadata: dict[str, Any]) -> dict[str, str]:
    """Name -> version of all that the metadata ask for."""
    return {name: metadata[key] for name, key in FRAMEWORKS.items()} | metadata["required_packages_version"]


def test_passes_verify_metadata_with_all_that_the_zoo_requires_and_prefers(bundle_dir: Path, tmp_path: Path) -> None:
    """A schema that is at hand is not downloaded; this one is stricter than the zoo's."""
    pytest.importorskip("jsonschema", reason="verify_metadata needs jsonschema")
    schema = shutil.copy(SCHEMA, tmp_path / "schema.json")
    verify_metadata(meta_file=str(bundle_dir / "configs" / "metadata.json"), filepath=str(schema))


@pytest.mark.e2e
def test_passes_verify_metadata_with_the_schema_it_names(bundle_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("jsonschema", reason="verify_metadata needs jsonschema")
    try:
        verify_metadata(meta_file=str(bundle_dir / "configs" / "metadata.json"), filepath=str(tmp_path / "schema.json"))
    except OSError as e:
        pytest.skip(f"the schema cannot be downloaded here: {e}")


def test_version_is_the_project_s_and_has_its_line_in_the_changelog(
    metadata: dict[str, Any], project: dict[str, Any]
) -> None:
    if "version" not in project.get("dynamic", []):
        assert metadata["version"] == project["version"]
    assert metadata["version"] in metadata["changelog"]


def test_packages_are_those_of_the_project(metadata: dict[str, Any], project: dict[str, Any]) -> None:
    """The same names, and versions that its bounds allow."""
    wanted = [Requirement(text) for text in project["dependencies"]]
    here = [r for r in wanted if r.marker is None or r.marker.evaluate({"python_version": "3.12"})]
    stated = {canonicalize_name(name): version for name, version in packages(metadata).items()}
    assert {canonicalize_name(r.name) for r in here} == set(stated)
    assert [str(r) for r in here if not r.specifier.contains(stated[canonicalize_name(r.name)])] == []


def test_packages_hold_whatever_the_scripts_import(bundle_dir: Path, metadata: dict[str, Any]) -> None:
    modules: dict[str, Path] = {}
    for file in sorted((bundle_dir / "scripts").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            modules |= {name.split(".")[0]: file for name in names}
    foreign = set(modules) - sys.stdlib_module_names - {"scripts"}
    known = {canonicalize_name(name) for name in packages(metadata)} | ONLY_IF_ASKED
    distributions = packages_distributions()
    missing = {
        f"{module} ({modules[module].name})"
        for module in foreign
        if known.isdisjoint({canonicalize_name(name) for name in [module, *distributions.get(module, [])]})
    }
    assert missing == set()


def test_channels_are_the_structures_that_the_weights_were_trained_for(
    bundle_dir: Path, metadata: dict[str, Any]
) -> None:
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert list(pred["channel_def"]) == [str(number) for number in range(pred["num_channels"])]
    assert pred["channel_def"]["0"] == "background"
    training = ConfigParser.load_config_file(str(bundle_dir / "configs" / "brain.json"))
    assert trained_structures(metadata) == list(training["label_values"])
    terminology = Terminology.load()
    assert [terminology.target(name, "MRI", "anatomy").name for name in trained_structures(metadata)]


def test_patch_is_the_coarse_network_s(bundle_dir: Path, metadata: dict[str, Any]) -> None:
    config = ConfigParser.load_config_file(str(bundle_dir / "configs" / "inference.json"))
    for side in ("inputs", "outputs"):
        for tensor in metadata["network_data_format"][side].values():
            assert tensor["spatial_shape"] == config["roi_size"]


def test_scores_are_the_model_card_s(bundle_dir: Path, metadata: dict[str, Any]) -> None:
    card = (bundle_dir / "docs" / "README.md").read_text()
    columns = ("coarse_t1_like", "two_stages_t1_like", "two_stages_random_contrast")
    expected = {}
    for measure, row in (("dice", "mean of the structures, DSC"), ("nsd_2mm", "the same, NSD at 2 mm")):
        (cells,) = re.findall(rf"^\| \*\*{row}\*\* \|(.+)\|$", card, flags=re.MULTILINE)
        values = [float(number) for number in re.findall(r"\*\*([\d.]+)\*\*", cells)]
        expected |= {f"mean_{measure}_{column}": value for column, value in zip(columns, values, strict=True)}
    assert metadata["eval_metrics"] == expected


def test_model_card_has_the_sections_of_the_zoo_s_template(bundle_dir: Path) -> None:
    card = (bundle_dir / "docs" / "README.md").read_text()
    headings = re.findall(r"^#{2,3} \*\*(.+)\*\*$", card, flags=re.MULTILINE)
    assert headings == SECTIONS
    links = [target for target in re.findall(r"\]\(([^)]+)\)", card) if "://" not in target]
    assert [target for target in links if not (bundle_dir / "docs" / target).is_file()] == []


@pytest.mark.parametrize(("name", "properties"), [("train", TrainProperties), ("inference", InferProperties)])
def test_configs_have_the_keys_that_programs_look_for(
    bundle_dir: Path, name: str, properties: dict[str, dict[str, Any]]
) -> None:
    """MONAI's own list of what every bundle has; ``check_properties`` on a whole run is tested with the configs."""
    config = ConfigParser(ConfigParser.load_config_file(str(bundle_dir / "configs" / f"{name}.json")))
    wanted = [str(entry[BundlePropertyConfig.ID]) for entry in properties.values() if entry[BundleProperty.REQUIRED]]
    assert [key for key in wanted if key not in config] == []


def test_logging_goes_to_the_terminal(bundle_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logging.config.fileConfig(bundle_dir / "configs" / "logging.conf", disable_existing_loggers=False)
        logging.getLogger("scripts.anything").info("a line")
        assert "INFO scripts.anything: a line" in capfd.readouterr().err
    finally:
        root.handlers[:], root.level = handlers, level


def test_licences_are_there(bundle_dir: Path) -> None:
    assert (bundle_dir / "LICENSE").read_text() == (bundle_dir.parent / "LICENSE").read_text()
    data = (bundle_dir / "docs" / "data_license.txt").read_text()
    for file in (bundle_dir / "models").iterdir():
        if file.suffix in (".pt", ".safetensors") and not file.name.startswith("medal_s_"):
            assert file.name in data


def test_large_files_are_those_that_import_weights_reads(bundle_dir: Path) -> None:
    """In the zoo's format: a path inside the bundle and an address; hashes only where they are known."""
    entries = ConfigParser.load_config_file(str(bundle_dir / "large_files.yml"))["large_files"]
    source = ConfigParser.load_config_file(str(bundle_dir / "configs" / "published.json"))["published_source"]
    for entry, pattern in zip(entries, (source[k] for k in ("weights", "fine_weights", "text_encoder")), strict=True):
        path = PurePosixPath(entry["path"])
        assert path.parts[0] == "models"
        assert ".." not in path.parts
        assert fnmatch(path.name, pattern)
        assert entry["url"].startswith("https://")
        assert entry["url"].endswith(f"{source['repository']}/resolve/main/{path.name}")
        if entry.get("hash_val"):
            assert len(entry["hash_val"]) == {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}[entry["hash_type"]]
