"""Job lists and folders of images: which cases they give, and how a mistake in them is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.data.jobs import read_jobs
from scripts.errors import InputError


def touch(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def dicom(folder: Path) -> None:
    """Files that begin as DICOM; finding them is all that is asked here."""
    for number in range(2):
        touch(folder / f"{number}", bytes(128) + b"DICM")


def names(cases: list[dict[str, Any]]) -> list[str]:
    return [case["name"] for case in cases]


def test_folder_gives_every_image(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.NRRD", "c.mha", "d.npz", "e.zip", "notes.txt", ".hidden.nii.gz", "raw/f.nii"):
        touch(tmp_path / name)
    dicom(tmp_path / "series one")
    touch(tmp_path / "out" / "b_seg.nii.gz")
    cases = read_jobs(tmp_path, "liver", "CT", output_dir=tmp_path / "out")
    assert names(cases) == ["a", "b", "c", "d", "e", "f", "series one"]
    assert cases[-1]["image"] == str(tmp_path / "series one")
    assert all(case["text"] == "liver" and case["modality"] == "CT" for case in cases)


def test_folder_of_slices_is_one_case(tmp_path: Path) -> None:
    dicom(tmp_path)
    touch(tmp_path / "DICOMDIR", bytes(128) + b"DICM")
    assert read_jobs(tmp_path, "liver") == [{"text": "liver", "image": str(tmp_path), "name": tmp_path.name}]


def test_index_of_a_disc_is_no_slice(tmp_path: Path) -> None:
    touch(tmp_path / "DICOMDIR", bytes(128) + b"DICM")
    dicom(tmp_path / "study" / "1")
    assert [case["image"] for case in read_jobs(tmp_path, "liver")] == [str(tmp_path / "study" / "1")]


def test_same_name_in_several_folders(tmp_path: Path) -> None:
    for name in ("p1/ct.nii.gz", "p2/CT.nii.gz", "p2/mr.nii.gz"):
        touch(tmp_path / name)
    assert names(read_jobs(tmp_path, "liver")) == ["p1_ct", "p2_CT", "mr"]


LISTS = {
    "cases.csv": "image,prompts,modality,prompt_mask,name\na.nii,liver; left kidney ,CT,,first\n\nsub/b.nii,,,m.nii,\n",
    "cases.json": json.dumps(
        [
            {"image": "a.nii", "prompts": ["liver", "left kidney"], "modality": "CT", "name": "first"},
            {"image": "sub/b.nii", "prompt_mask": "m.nii", "prompts": None},
        ]
    ),
    "cases.jsonl": '{"image": "a.nii", "prompts": ["liver", "left kidney"], "modality": "CT", "name": "first"}\n'
    '\n{"image": "sub/b.nii", "prompt_mask": "m.nii"}\n',
}


@pytest.mark.parametrize("name", LISTS)
def test_lists(tmp_path: Path, name: str) -> None:
    """The three forms say the same; paths are relative to the list, and a case's own words win."""
    path = tmp_path / name
    path.write_text(LISTS[name], encoding="utf-8-sig" if name.endswith("csv") else "utf-8")
    assert read_jobs(path, "spleen", "MRI") == [
        {
            "text": ["liver", "left kidney"],
            "modality": "CT",
            "image": str(tmp_path / "a.nii"),
            "name": "first",
        },
        {
            "text": "spleen",
            "modality": "MRI",
            "image": str(tmp_path / "sub" / "b.nii"),
            "name": "b",
            "prompt_mask": str(tmp_path / "m.nii"),
        },
    ]


def test_challenge_files_may_bring_their_own_prompts(tmp_path: Path) -> None:
    touch(tmp_path / "a.npz")
    assert "text" not in read_jobs(tmp_path)[0]


BAD_LISTS = {
    "no heading": ("a.csv", "a.nii,liver\n", "line 1: wanted a heading with image"),
    "commas without quotes": ("a.csv", "image,prompts\na.nii,liver\nb.nii,liver, spleen\n", "line 3: more fields"),
    "open quote": ("a.csv", 'image,prompts\n"a.nii,liver\n', "not CSV"),
    "no image": ("a.csv", "image,prompts\n,liver\n", "line 2: no image"),
    "unknown column": ("a.csv", "image,promts\na.nii,liver\n", "line 2: unknown promts; known: image, prompts"),
    "only a heading": ("a.csv", "image,prompts\n", "no case in a.csv"),
    "one name twice": ("a.csv", "image,prompts\na/ct.nii,x\nb/CT.nii,x\n", "results of line 2 and line 3"),
    "bad name": ("a.csv", "image,prompts,name\na.nii,liver,../x\n", "line 2: the name '../x'"),
    "no prompts": ("a.csv", "image,prompts\na.nii,\n", "no prompts for a.nii"),
    "broken line": ("a.jsonl", '{"image": "a.nii"}\n{"image": \n', "line 2: not JSON"),
    "broken JSON": ("a.json", '[\n{"image": "a.nii"},\n]', "not JSON .*line 3"),
    "other JSON": ("a.json", '{"image": "a.nii"}', "wanted an array of objects"),
    "entry is a text": ("a.json", '[{"image": "a.nii", "prompts": "x"}, "b.nii"]', "entry 2: wanted an object"),
    "prompts are numbers": ("a.json", '[{"image": "a.nii", "prompts": [1]}]', "entry 1: prompts must be"),
    "image is a number": ("a.json", '[{"image": 3}]', "entry 1: image must be a text"),
    "another ending": ("a.txt", "a.nii", "neither a folder nor a list"),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_bad_list_is_refused(tmp_path: Path, case: str) -> None:
    name, content, message = BAD_LISTS[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_jobs(tmp_path / name)


def test_bad_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_jobs(tmp_path / "no", "liver")
    with pytest.raises(InputError, match="got None"):
        read_jobs(None, "liver")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no image in"):
        read_jobs(tmp_path, "liver")
    touch(tmp_path / "a.nii")
    with pytest.raises(InputError, match="among the images"):
        read_jobs(tmp_path, "liver", output_dir=tmp_path / "." / "x" / "..")
    with pytest.raises(InputError, match=r"no prompts for a\.nii"):
        read_jobs(tmp_path)
    touch(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"results of a\.nii and a\.nii\.gz would both be named 'a'"):
        read_jobs(tmp_path, "liver")


@given(text=st.text(max_size=200), suffix=st.sampled_from([".csv", ".json", ".jsonl"]))
def test_whatever_a_list_holds(tmp_path_factory: pytest.TempPathFactory, text: str, suffix: str) -> None:
    """Either cases or one clear line, never another error."""
    path = tmp_path_factory.mktemp("list") / f"list{suffix}"
    path.write_text(text, encoding="utf-8", errors="replace")
    error: InputError | None = None
    cases: list[dict[str, Any]] = []
    try:
        cases = read_jobs(path, "liver")
    except InputError as e:
        error = e
    assert str(error).startswith("jobs: ") if error else all(case["image"] and case["name"] for case in cases)
