"""Window inference against predictors whose answer is known."""

from __future__ import annotations

import json

import pytest
import torch
from monai.data import MetaTensor

from scripts.inferers import AutocastInferer, PromptWindowInferer, RefinementInferer

QUERIES = torch.zeros(2, 4)


def certain(mask: torch.Tensor) -> torch.Tensor:
    """Logits whose sigmoid is the mask to within float precision."""
    return (mask - 0.5) * 200


def test_prompts_travel_with_the_image() -> None:
    """A network that repeats its prompts gives back every voxel's own prompt, whatever window it came in."""
    prompts = (torch.rand(1, 2, 11, 8, 14) > 0.5).float()
    image = torch.rand(1, 1, 11, 8, 14)
    seen = []

    def network(image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        seen.append((tuple(image.shape), tuple(queries.shape), tuple(prompts.shape)))
        return certain(prompts)

    out = PromptWindowInferer((8, 8, 8), progress=False)(image, network, QUERIES, prompts)
    assert torch.allclose(out, prompts)
    assert set(seen) == {((1, 1, 8, 8, 8), (2, 4), (1, 2, 8, 8, 8))}


def test_image_of_each_window_is_cropped_alike() -> None:
    image = torch.rand(1, 1, 9, 12, 8)
    out = PromptWindowInferer((8, 8, 8), progress=False)(
        image, lambda x, q, p: torch.cat([x, 1 - x], dim=1).logit(eps=1e-6), QUERIES
    )
    assert torch.allclose(out, torch.cat([image, 1 - image], dim=1), atol=1e-5)


def test_text_only_gets_zero_prompts_not_none() -> None:
    """The fusion block has to run on an empty prompt, as the published text-only inference does."""
    given = []
    PromptWindowInferer((4, 4, 4), progress=False)(
        torch.zeros(1, 1, 4, 4, 4), lambda x, q, p: given.append(p) or torch.zeros(1, 2, 4, 4, 4), QUERIES
    )
    assert given[0].shape == (1, 2, 4, 4, 4)
    assert not given[0].any()


@pytest.mark.parametrize("batch", [1, 3])
def test_overlap_is_a_gaussian_weighted_mean(batch: int) -> None:
    """Two windows that answer 0.2 and 0.8: every voxel is their mean weighted by exp(-d^2 / (2 sigma^2))."""
    size = 16
    answers = iter([0.2, 0.5, 0.8])

    def network(x: torch.Tensor, q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.full((1, 2, *x.shape[2:]), next(answers)) for _ in x]).logit()

    out = PromptWindowInferer((size, size, size), sw_batch_size=batch, progress=False)(
        torch.zeros(1, 1, 2 * size, size, size), network, QUERIES
    )
    place = torch.arange(2.0 * size)
    centres = torch.tensor([size, 2 * size, 3 * size]) / 2 - 0.5
    weights = torch.exp(-((place[:, None] - centres) ** 2) / (2 * (size / 8) ** 2))
    inside = (place[:, None] >= centres - size / 2) & (place[:, None] <= centres + size / 2)
    weights = torch.where(inside, weights, 0)
    expected = (weights * torch.tensor([0.2, 0.5, 0.8])).sum(dim=1) / weights.sum(dim=1)
    middle = out[0, 0, :, size // 2, size // 2]
    assert torch.allclose(middle, expected, atol=2e-3)


def test_windows_are_the_published_ones(shared) -> None:
    """Half-window stride, last window moved back, padding at the end: every case of golden/spacing.json."""
    cases = [case for case in json.loads((shared / "golden" / "spacing.json").read_text()) if case["windows"]]
    assert cases
    for case in cases:
        inferer = PromptWindowInferer(case["crop_size_hwd"], progress=False)
        windows = inferer.windows(case["resampled_shape_hwd"])
        assert [[n for s in w for n in (s.start, s.stop)] for w in windows] == case["windows"]
        ends = [max(window[axis].stop for window in windows) for axis in range(3)]
        assert ends == case["padded_shape_hwd"]


def test_small_volume_is_padded_with_zeros_at_its_end() -> None:
    seen = []

    def network(x: torch.Tensor, q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return certain(p)

    image, prompts = torch.rand(1, 1, 5, 9, 3) + 1, torch.ones(1, 2, 5, 9, 3)
    out = PromptWindowInferer((8, 8, 8), progress=False)(image, network, QUERIES, prompts)
    assert out.shape == (1, 2, 5, 9, 3)
    assert torch.equal(seen[0][..., :5, :8, :3], image[..., :8, :])
    assert not seen[0][:, :, 5:].any()
    assert not seen[0][..., 3:].any()


def test_metadata_survives_and_output_is_float32_under_autocast() -> None:
    image = MetaTensor(torch.rand(1, 1, 4, 4, 4), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    linear = torch.nn.Linear(1, 2)
    reduced = AutocastInferer(RefinementInferer(iterations=0))

    def network(x: torch.Tensor, q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        out = linear(x.movedim(1, -1))
        assert out.dtype == torch.bfloat16
        return out.movedim(-1, 1)

    out = PromptWindowInferer((4, 4, 4), window_inferer=reduced, progress=False)(image, network, QUERIES)
    assert out.dtype == torch.float32
    assert torch.equal(out.affine, image.affine)
    assert not out.requires_grad


def test_progress_counts_windows(capsys) -> None:
    inferer = PromptWindowInferer((4, 4, 4), sw_batch_size=2)
    inferer(torch.zeros(1, 1, 8, 8, 4), lambda x, q, p: p, QUERIES)
    assert "9/9" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(1, 3, 4, 4, 4), (1, 2, 4, 4, 5), (2, 2, 4, 4, 4)])
def test_prompts_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not fit 2 queries"):
        PromptWindowInferer((4, 4, 4), progress=False)(
            torch.zeros(1, 1, 4, 4, 4), lambda x, q, p: p, QUERIES, torch.zeros(shape)
        )
