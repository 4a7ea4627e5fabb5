"""The terminology: complete, consistent, checked at load, and extended by adding an entry."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.text import PromptParser, Terminology


@pytest.fixture(scope="module")
def terminology() -> Terminology:
    return Terminology.load()


@pytest.fixture
def content(bundle_dir: Path) -> dict:
    return json.loads((bundle_dir / "configs" / "terminology.json").read_text(encoding="utf-8"))


def test_holds_every_class_of_the_challenge(terminology: Terminology, shared: Path) -> None:
    classes = json.loads((shared / "data" / "text" / "biomedsegfm_classes.json").read_text())
    wanted = {(modality, kind, name) for modality in classes for kind, ns in classes[modality].items() for name in ns}
    assert len(wanted) == 243
    ours = {(target.modality, target.kind, target.name) for target in terminology.targets()}
    assert wanted <= ours
    assert {target.concept.group for target in terminology.targets() if target.id not in range(1, 33)} >= {"organs"}
    assert {name for modality, _, name in ours - wanted} == {t.name for t in terminology.targets(group="brain")}


def test_brain_structures_are_numbered_as_in_the_label_maps(terminology: Terminology, shared: Path) -> None:
    labels = json.loads((shared / "data" / "brain_label_maps" / "labels.json").read_text())["labels"]
    wanted = [name for value, name in labels.items() if value != "0"]
    brain = terminology.targets("MRI", group="brain")
    assert [target.name.lower() for target in brain] == [name.lower() for name in wanted]
    assert [target.id for target in brain] == list(range(1, len(wanted) + 1))


def test_pairs_mirror_each_other(terminology: Terminology) -> None:
    for target in terminology.targets():
        other = terminology.other_side(target)
        if other is not None:
            assert terminology.other_side(other) == target
            assert {target.concept.laterality, other.concept.laterality} == {"left", "right"}
            assert len(terminology.sentences(target)) == len(terminology.sentences(other))
    assert terminology.other_side(terminology.target("Left kidney", "CT")).name == "Right kidney"
    assert terminology.other_side(terminology.target("Left ventricle", "MRI")) is None  # the heart has no mirror image


def test_colours_are_distinct(terminology: Terminology) -> None:
    colours = [concept.color for concept in terminology.concepts]
    assert len(set(colours)) == len(colours)
    assert all(max(colour) >= 90 for colour in colours)  # legible on a dark image


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("CT_Liver", "stages", (1, 2)),
        ("CT_Liver", "refine_steps", (1, 1)),
        ("US_Soleus", "stages", (1,)),
        ("Microscopy_Synaptic clefts", "stages", (2,)),
        ("CT_Airway Tree", "refine_steps", (0, 0)),
        ("CT_Airway Tree", "roi_margin", 1.5),
        ("CT_Airways", "max_patches", 1.6),
        ("CT_Airways", "roi_max_patches", 2.0),
        ("MRI_Vertebrae", "refine_steps", (1, 0)),
        ("PET_Lesion", "spacing_divisor", (1.45, 1.35)),
        ("CT_Lesion", "spacing_divisor", (1.2, 1.2)),
        ("Microscopy_Endolysosomes", "spacing_factor", (1.0, 1.1)),
        ("Microscopy_Mitochondria", "unit_spacing", True),
        ("US_Brain tumor", "max_patches", 1.2),
        ("MRI_Brain tumor", "max_patches", 2.0),
        ("CT_Spleen", "filter_components", True),
        ("MRI_Spleen", "filter_components", False),
        ("CT_no such class", "roi_margin", 1.1),
    ],
)
def test_policy(terminology: Terminology, key: str, field: str, value: object) -> None:
    assert getattr(terminology.policy(key), field) == value


def test_number_of_filtered_classes(terminology: Terminology) -> None:
    filtered = [target.key for target in terminology.targets() if terminology.policy(target).filter_components]
    assert len(filtered) == 14 + 18 + 4


def test_windows(terminology: Terminology) -> None:
    assert terminology.window(terminology.target("Left lung", "CT")) == (1500, -160)
    assert terminology.window(terminology.target("Left femur", "CT")) == (1800, 400)
    assert terminology.window(terminology.target("Liver", "CT")) == (400, 40)


def test_adding_a_concept_is_adding_an_entry(content: dict) -> None:
    content["concepts"].append(
        {
            "id": 399,
            "name": "Thymus",
            "kind": "anatomy",
            "modalities": {"CT": {"roi_margin": 1.3}},
            "group": "organs",
            "color": [1, 2, 3],
            "synonyms": ["thymic gland"],
        }
    )
    extended = Terminology.from_dict(content)
    (target,) = PromptParser(extended).parse("please segment the thymic gland", "CT")
    assert (target.name, target.id, target.key) == ("Thymus", 399, "CT_Thymus")
    assert extended.policy(target).roi_margin == 1.3
    assert "thymic gland" in extended.all_sentences()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 1}, "id 1 is taken"),
        ({"id": "x"}, "id is a whole number"),
        ({"kind": "organ"}, "kind is one of anatomy, lesion"),
        ({"modalities": {"Xray": {}}}, "modalities are among"),
        ({"modalities": {"CT": {"margin": 2}}}, "unknown field margin"),
        ({"modalities": {"CT": {"refine_steps": 0}}}, "refine_steps is"),
        ({"color": [0, 0, 300]}, "color is"),
        ({"laterality": "middle"}, "laterality is"),
        ({"pair": "Right thymus"}, "must exist"),
        ({"window": "liver"}, "window is one of"),
        ({"synonyms": "thymic gland"}, "list of non-empty strings"),
        ({"colour": [1, 2, 3]}, "unknown field colour"),
        ({"name": "Liver"}, "described twice"),
    ],
)
def test_a_broken_entry_is_named(content: dict, change: dict, message: str) -> None:
    entry = {"id": 399, "name": "Thymus", "kind": "anatomy", "modalities": {"CT": {}}, "group": "organs"}
    entry |= {"color": [1, 2, 3]} | change
    broken = copy.deepcopy(content)
    broken["concepts"].append(entry)
    with pytest.raises(ValueError, match=message) as caught:
        Terminology.from_dict(broken, "my.json")
    assert str(caught.value).startswith("my.json: concept")


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        Terminology.load(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        Terminology.load(tmp_path / "broken.json")


def test_unknown_names_are_answered_with_near_ones(terminology: Terminology) -> None:
    with pytest.raises(ValueError, match="Left kidney"):
        terminology.target("left kidny", "CT")
    with pytest.raises(ValueError, match="known: CT, MRI"):
        terminology.targets("xray")
    assert terminology.modality("MR").name == "MRI"


def test_parsing_needs_no_torch(bundle_dir: Path) -> None:
    code = (
        "import sys; from scripts.text import PromptParser; PromptParser().parse('liver', 'CT'); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=bundle_dir, check=False).returncode == 0
