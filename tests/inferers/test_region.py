"""The region of interest: the published program's boxes, and what must hold for any box."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scripts.inferers.region import foreground_box, region_of_interest
from scripts.transforms.resampling import working_spacing


def hwd(values: list) -> list:
    """Golden lists are in the order (D, H, W)."""
    return [values[1], values[2], values[0]]


def test_all_published_regions(shared: Path) -> None:
    cases = json.loads((shared / "golden" / "roi.json").read_text())
    assert len(cases) == 18
    for case in cases:
        shape, flat = hwd(case["image_shape_dhw"]), case["mask_box_dhw_inclusive"]
        spacing = working_spacing(case["file_spacing_hwd"], shape)
        region = region_of_interest(shape, spacing, hwd([flat[:2], flat[2:4], flat[4:]]), case["class_names"])
        assert region.spacing == pytest.approx(hwd(case["roi_spacing_dhw"]), rel=1e-5)
        assert region.half_extent == pytest.approx(hwd(case["half_extent_dhw"]), rel=1e-6)
        bounds = np.array([region.box[2], region.box[0], region.box[1]]).ravel()
        assert (np.abs(bounds - case["roi_dhw_inclusive"]) <= case["tolerance_voxels"]).all(), case


axis = st.integers(1, 500).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, n - 1), st.integers(0, n - 1)).map(
        lambda v: (v[0], (min(v[1:]), max(v[1:])))
    )
)
KEYS = ["CT_Liver", "CT_Airway Tree", "PET_Lesion", "US_Brain tumor", "Microscopy_Endolysosomes"]


@given(
    st.tuples(axis, axis, axis),
    st.tuples(*[st.floats(0.1, 9)] * 3),
    st.lists(st.sampled_from(KEYS), min_size=1, max_size=4),
    st.booleans(),
)
def test_a_region_holds_its_box_and_lies_in_the_volume(axes, spacing, keys, dynamic) -> None:  # type: ignore[no-untyped-def]
    shape, box = [n for n, _ in axes], [b for _, b in axes]
    region = region_of_interest(shape, spacing, box, keys, (64, 64, 32), (1.5, 1.5, 3), dynamic=dynamic)
    assert region == region_of_interest(shape, spacing, box, keys[::-1], (64, 64, 32), (1.5, 1.5, 3), dynamic=dynamic)
    for n, (first, last), (start, stop), (a, b) in zip(
        shape, box, zip(region.start, region.stop, strict=True), region.box, strict=True
    ):
        assert 0 <= start <= first <= last < stop <= n
        assert (a, b) == (start, stop - 1)
    assert torch.zeros(1).expand(shape)[region.slices].shape == region.shape


def test_the_airway_margin_wins_over_the_others() -> None:
    arguments = ((300, 300, 300), (1, 1, 1), [(50, 249)] * 3)
    assert region_of_interest(*arguments, ["CT_Liver"]).half_extent[0] == pytest.approx(110)
    assert region_of_interest(*arguments, ["CT_Liver", "CT_Airway Tree"]).half_extent[0] == pytest.approx(150)


def test_a_fixed_stage_gets_a_patch_at_its_own_spacing() -> None:
    region = region_of_interest(
        (200, 200, 200), (0.5, 0.5, 2.0), [(99, 100)] * 3, ["MRI_X"], (64, 64, 64), (3, 3, 3), dynamic=False
    )
    assert region.half_extent == pytest.approx((191, 191, 47))


@pytest.mark.parametrize("box", [[(0, 5)] * 2, [(0, 5), (0, 5), (4, 10)], [(3, 2)] * 3, [(-1, 2)] * 3])
def test_boxes_outside_the_volume_are_refused(box: list) -> None:
    with pytest.raises(ValueError, match=r"^region: box"):
        region_of_interest((10, 10, 10), (1, 1, 1), box, ["CT_Liver"])


def test_foreground_box() -> None:
    labels = torch.zeros(2, 9, 8, 7)
    assert foreground_box(labels) is None
    labels[0, 3, 4, 5] = 2
    labels[1, 6, 2, 5] = 1
    assert foreground_box(labels) == ((3, 6), (2, 4), (5, 5))
    assert foreground_box(labels[0]) == ((3, 3), (4, 4), (5, 5))
    assert foreground_box(labels[None] > 0) == ((3, 6), (2, 4), (5, 5))
