"""The benchmark measures what it says, judges by its goals, and rewrites its own part of a document and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts import bench
from scripts.benchmarks import memory
from scripts.benchmarks.measuring import HIGHER, Row, side_by_side
from scripts.benchmarks.phantom import BandNetwork, write_ramp
from scripts.benchmarks.postprocessing import class_by_class, phantom
from scripts.benchmarks.table import BEGIN, END, as_markdown, rewrite
from scripts.convert_checkpoint import convert_reference_state_dict
from scripts.errors import InputError
from scripts.networks import MedalS
from scripts.published.reference_network import PublishedNetwork
from scripts.transforms.postprocess import keep_probable_components

TINY = {"features": [4, 8], "strides": [1, 2], "query_dim": 24, "roi_size": [16, 16, 16], "spacing": [4.0, 4.0, 4.0]}


@pytest.fixture
def config(tmp_path: Path, bundle_dir: Path) -> list[str]:
    """The inference config with a tiny network, as arguments."""
    overlay = tmp_path / "tiny.json"
    overlay.write_text(json.dumps(TINY))
    files = ["--config_file", str(bundle_dir / "configs" / "inference.json"), str(overlay)]
    return [*files, "--bundle_root", str(bundle_dir), "--device", "cpu"]


def run_bench(config: list[str], folder: Path, only: str, *more: str) -> dict[str, Any]:
    output = folder / "bench.json"
    bench.main([*config, "--quick", "--rounds", "1", "--queries", "3", "--only", only, "--output", str(output), *more])
    return json.loads(output.read_text())


def test_sections_are_measured_in_their_order_and_ratios_are_those_of_the_seconds(config: list[str], tmp_path: Path):
    result = run_bench(config, tmp_path, "spatial_prompt, windows,parallel,postprocessing")
    assert list(result["sections"]) == ["parallel", "windows", "postprocessing", "spatial_prompt"]
    parallel = result["sections"]["parallel"]
    seconds = parallel["details"]["seconds"]
    assert parallel["rows"][0]["value"] == pytest.approx(seconds["together"] / seconds["one_after_another"])
    assert parallel["details"]["targets"] == 3
    assert list(result["sections"]["windows"]["details"]["seconds"]) == ["1", "2", "4"]
    for section in result["sections"].values():
        assert all(value > 0 for value in section["details"]["seconds"].values())
    assert result["settings"] == {"quick": True, "rounds": 1, "queries": 3}
    assert result["machine"]["torch"] == torch.__version__


def test_a_section_that_there_is_not(config: list[str], tmp_path: Path):
    with pytest.raises(InputError, match="no section 'speed'; there are parallel"):
        run_bench(config, tmp_path, "parallel,speed")
    assert not list(tmp_path.glob("bench*"))


def test_calls_take_turns_and_the_median_counts():
    order: list[str] = []
    seconds = side_by_side({name: lambda name=name: order.append(name) for name in "ab"}, rounds=2)
    assert "".join(order) == "ababab"  # the first of each is a warm-up
    assert set(seconds) == {"a", "b"}


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (Row("ratio", 0.04, goal=0.05), True),
        (Row("ratio", 0.06, goal=0.05), False),
        (Row("speed", 2.1, "x", 2.0, HIGHER), True),
        (Row("speed", 1.9, "x", 2.0, HIGHER), False),
        (Row("seconds", 1.0, "s"), None),
    ],
)
def test_goals(row: Row, met: bool | None):
    assert row.met is met


RESULT = {
    "machine": {
        "processor": "Abacus", "cores": 2, "threads": 2, "avx512_bf16": False, "device": "cpu",
        "python": "3.11", "torch": "2", "monai": "1",
    },
    "settings": {"quick": False},
    "load_at_start": 0.5,
    "load_at_end": 2.25,
    "seconds": 3.2,
    "sections": {
        "one": {
            "title": "One thing",
            "rows": [
                Row("too slow", 6.123, "s", 5.0).as_entry(),
                Row("good", 0.9991, "", 0.999, HIGHER).as_entry(),
                Row("plain", 7.0, "x").as_entry(),
            ],
            "notes": ["Why."],
        }
    },
}  # fmt: skip


def test_missed_goals_are_said_plainly():
    text = as_markdown(RESULT)
    assert "Goals reached: 1 of 2. Missed: too slow." in text
    assert "| too slow | 6.12 s | ≤ 5 s | **no** |" in text
    assert "| good | 0.9991 | ≥ 0.999 | yes |" in text
    assert "| plain | 7x |  |  |" in text
    assert "load average 0.5 at the start, 2.25 at the end" in text


def test_only_the_marked_section_of_a_document_is_rewritten(tmp_path: Path):
    document = tmp_path / "performance.md"
    document.write_text(f"# Title\n\nBefore.\n\n{BEGIN}\nold numbers\n{END}\n\nAfter.\n")
    rewrite(document, RESULT)
    rewrite(document, RESULT)
    text = document.read_text()
    assert text.startswith("# Title\n\nBefore.\n")
    assert text.endswith(f"{END}\n\nAfter.\n")
    assert "old numbers" not in text
    assert text.count("### One thing") == 1
    document.write_text("# Another document\n")
    with pytest.raises(ValueError, match="no section between"):
        rewrite(document, RESULT)
    assert document.read_text() == "# Another document\n"
    assert [path.name for path in tmp_path.iterdir()] == ["performance.md"]


@pytest.mark.slow
def test_the_yardstick_is_the_network():
    """The plain transcription and the full-size network give the same logits from the same weights, with prompts."""
    published = PublishedNetwork().eval()
    ours = MedalS().eval()
    ours.load_state_dict(convert_reference_state_dict(published.state_dict()), strict=True)
    image, queries = torch.randn(1, 1, 32, 32, 64), torch.randn(1, 2, 768)
    prompts = (torch.rand(1, 2, 32, 32, 64) > 0.7).float()
    with torch.inference_mode():
        for shown in (prompts, torch.zeros_like(prompts)):
            expected = published(image, queries, shown)
            assert expected.std() > 0.01
            assert float((ours(image, queries, shown) - expected).abs().max()) < 1e-3 * float(expected.std())


def test_class_by_class_is_the_same_rule():
    """What post-processing is compared with does the same work; it is wrong if either leaves a component more."""
    from scipy.ndimage import label

    labels, probability = phantom((40, 48, 36), seed=3)
    expected = class_by_class(labels, probability, range(1, 25), label)
    assert 0 < np.count_nonzero(expected) < np.count_nonzero(labels)
    assert np.array_equal(keep_probable_components(labels, probability, range(1, 25)), expected)


def test_bands_cut_a_ramp_into_slices(tmp_path: Path):
    image = nib.load(write_ramp(tmp_path / "ramp.nii", (4, 4, 200)))
    ramp = torch.from_numpy(image.get_fdata(dtype=np.float32))[None, None]
    network = BandNetwork(torch.nn.Identity(), every=10**9, width=0.1)
    network._windows = 1  # not the turn of the real network
    normalised = (ramp - ramp.mean()) / ramp.std()
    queries = torch.randn(5, 16)
    both = network(normalised, queries)
    alone = network(normalised, queries[3:4])
    assert torch.equal(both[:, 3:4], alone)  # a target keeps its slice whatever it is asked with
    thickness = (both[0, :, 0, 0] > 0).sum(dim=1)
    assert thickness.min() > 0
    assert thickness.max() <= 0.1 * 200 + 2


def test_a_run_for_memory_goes_from_file_to_files(
    config: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    image = write_ramp(tmp_path / "ramp.nii", (60, 60, 64))
    memory.main([str(image), str(tmp_path / "out"), "--targets", "4", *config])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["targets"] == 4
    assert found["found"] >= 3
    assert found["peak_gib"] >= found["before_gib"] > 0.1
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"ramp_seg.nii.gz", "ramp_seg.json"}
