"""Window inference against predictors whose answer is known."""

from __future__ import annotations

import json

import pytest
import torch
from monai.data import MetaTensor

from scripts.errors import InputError
from scripts.inferers import AutocastInferer, PromptWindowInferer, RefinementInferer
from scripts.transforms.grid_merger import pack_masks

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


@pytest.mark.parametrize("first_pass", ["plain", "masked"])
def test_packed_prompts_and_a_choice_of_answers_change_no_value(first_pass: str) -> None:
    """Eleven classes that see each other's prompts, of which three are kept."""
    masks = torch.rand(1, 11, 11, 8, 14, generator=torch.Generator().manual_seed(0)) > 0.5
    image = torch.rand(1, 1, 11, 8, 14, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(11, 11, generator=torch.Generator().manual_seed(2))

    def network(image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        return image + torch.einsum("nm,bmhwd->bnhwd", weights, prompts)

    refine = RefinementInferer(1, first_pass=first_pass, return_disagreement=True)
    inferer = PromptWindowInferer((8, 8, 8), 2, window_inferer=refine, progress=False, return_disagreement=True)
    whole, _ = inferer(image, network, torch.zeros(11, 4), masks.float())
    kept, spread = inferer(image, network, torch.zeros(11, 4), pack_masks(masks[0])[None], keep=[9, 0, 4])
    assert torch.equal(kept, whole[:, [9, 0, 4]])
    assert spread.shape == (1, 1, 11, 8, 14)


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
        torch.rand(1, 1, 4, 4, 4), lambda x, q, p: given.append(p) or torch.zeros(1, 2, 4, 4, 4), QUERIES
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
        torch.rand(1, 1, 2 * size, size, size), network, QUERIES
    )
    place = torch.arange(2.0 * size)
    centres = torch.tensor([size, 2 * size, 3 * size]) / 2 - 0.5
    weights = torch.exp(-((place[:, None] - centres) ** 2) / (2 * (size / 8) ** 2))
    inside = (place[:, None] >= centres - size / 2) & (place[:, None] <= centres + size / 2)
    weights = torch.where(inside, weights.clamp(min=1e-3), 0)
    expected = (weights * torch.tensor([0.2, 0.5, 0.8])).sum(dim=1) / weights.sum(dim=1)
    middle = out[0, 0, :, size // 2, size // 2]
    assert torch.allclose(middle, expected, atol=1e-5)


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


def test_half_precision_sums_stay_within_two_thousandths() -> None:
    """Up to 27 windows meet in a voxel; each is rounded, and their sum never leaves 0..1."""
    image, answers = torch.rand(1, 1, 23, 17, 19), torch.rand(40, 2, 8, 8, 8)

    def window(x: torch.Tensor, n: object, q: torch.Tensor, p: object) -> torch.Tensor:
        number = int(x.flatten()[0] * 1e6) % len(answers)
        return torch.maximum(answers[number : number + 1], (answers[number : number + 1] > 0.7).float())

    single, half = (
        PromptWindowInferer((8, 8, 8), window_inferer=window, progress=False, accumulate=kind)(image, None, QUERIES)
        for kind in ("float32", "float16")
    )
    assert half.dtype == torch.float16
    assert (half.float() - single).abs().max() < 2e-3
    assert half.min() >= 0
    assert half.max() <= 1


def test_weights_sum_to_one_everywhere() -> None:
    grid = PromptWindowInferer((8, 6, 8), progress=False).grid((21, 5, 13))
    total = torch.zeros(21, 5, 13)
    for index in range(len(grid)):
        total[grid.inside(index)] += grid.weight(index)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)


def test_windows_without_variation_are_not_run() -> None:
    """The right half of the image is one value: its windows answer 0, and the log of the run counts them."""
    image = torch.rand(1, 1, 8, 8, 24)
    image[..., 8:] = -1.5
    inferer = PromptWindowInferer((8, 8, 8), progress=False)
    seen = []

    def network(x: torch.Tensor, q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return torch.full_like(p, 100.0)

    out = inferer(image, network, QUERIES)
    assert len(seen) == inferer.last_run.predicted == 2
    assert (inferer.last_run.windows, inferer.last_run.skipped) == (5, 3)
    assert (out[..., :4] == 1).all()
    assert (out[..., 12:] == 0).all()
    everything = PromptWindowInferer((8, 8, 8), progress=False, skip_constant=False)(image, network, QUERIES)
    assert (everything == 1).all()


def test_a_prompt_in_a_window_without_variation_is_heard() -> None:
    image, prompts = torch.zeros(1, 1, 8, 8, 16), torch.zeros(1, 2, 8, 8, 16, dtype=torch.uint8)
    prompts[0, 1, 2, 2, 13] = 1
    out = PromptWindowInferer((8, 8, 8), progress=False)(image, lambda x, q, p: certain(p), QUERIES, prompts)
    assert out[0, 1, 2, 2, 13] == 1
    assert out.sum() == 1


def test_any_batching_gives_the_same() -> None:
    image = torch.rand(2, 1, 19, 8, 13)
    network = torch.nn.Conv3d(1, 2, 3, padding=1)
    single, three, all_at_once = (
        PromptWindowInferer((8, 8, 8), sw_batch_size=n, progress=False)(image, lambda x, q, p: network(x), QUERIES)
        for n in (1, 3, 100)
    )
    assert torch.allclose(single, three, atol=1e-6)
    assert torch.allclose(single, all_at_once, atol=1e-6)


def test_disagreement_is_that_of_the_most_probable_class() -> None:
    """Weighted like the probabilities; windows that measured none leave none."""
    image = torch.rand(1, 1, 8, 8, 16)

    def window(x: torch.Tensor, n: object, q: torch.Tensor, p: object) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([x, 1 - x], dim=1), torch.cat([x / 4, x / 2], dim=1)

    inferer = PromptWindowInferer((8, 8, 8), window_inferer=window, progress=False, return_disagreement=True)
    out, disagreement = inferer(image, None, QUERIES)
    assert torch.allclose(out[:, :1], image, atol=1e-6)
    assert disagreement.shape == image.shape
    assert torch.allclose(disagreement, torch.where(image >= 0.5, image / 4, image / 2), atol=1e-6)
    plain = PromptWindowInferer((8, 8, 8), progress=False)
    assert plain(image, lambda x, q, p: p, QUERIES, return_disagreement=True)[1] is None


def test_options_of_a_call_reach_the_window_inferer() -> None:
    passes = []
    inferer = PromptWindowInferer((8, 8, 8), window_inferer=RefinementInferer(iterations=0), progress=False)
    image = torch.rand(1, 1, 8, 8, 8)
    inferer(image, lambda x, q, p: passes.append(1) or p, QUERIES, iterations=2, return_disagreement=True)
    assert len(passes) == 5


def test_out_of_gpu_memory_is_met_once_by_the_smallest_run(caplog) -> None:
    """The first call fails as a full GPU does; the run starts again window by window, with a warning."""
    sizes = []

    def network(x: torch.Tensor, q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        if len(x) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return torch.cat([x, x], dim=1).logit(eps=1e-6)

    image = torch.rand(1, 1, 8, 8, 16)
    out = PromptWindowInferer((8, 8, 8), sw_batch_size=2, progress=False)(image, network, QUERIES)
    assert sizes == [2, 1, 1, 1]
    assert torch.allclose(out[:, :1], image, atol=1e-5)
    assert "out of GPU memory" in caplog.text


def test_no_memory_at_all_is_one_clear_line() -> None:
    def network(*_: torch.Tensor) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(InputError, match=r"does not hold one window of \(8, 8, 8\) with 2 targets"):
        PromptWindowInferer((8, 8, 8), progress=False)(torch.rand(1, 1, 8, 8, 8), network, QUERIES)


@pytest.mark.parametrize("arguments", [{"roi_size": (8, 8)}, {"sw_batch_size": 0}, {"overlap": 1}, {"accumulate": "x"}])
def test_meaningless_settings_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match="window inferer"):
        PromptWindowInferer(**{"roi_size": (8, 8, 8), **arguments})


@pytest.mark.parametrize("shape", [(1, 3, 4, 4, 4), (1, 2, 4, 4, 5), (2, 2, 4, 4, 4)])
def test_prompts_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not fit 2 queries"):
        PromptWindowInferer((4, 4, 4), progress=False)(
            torch.zeros(1, 1, 4, 4, 4), lambda x, q, p: p, QUERIES, torch.zeros(shape)
        )
