"""Mirroring against networks that know left from right."""

from __future__ import annotations

import pytest
import torch

from scripts.inferers import MirrorInferer, PromptWindowInferer, RefinementInferer

LEFT, RIGHT = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
QUERIES = torch.stack([LEFT, RIGHT])
MIRRORED = torch.stack([RIGHT, LEFT])


def lateral(image: torch.Tensor, queries: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """Answers a bright spot in the first half of axis 0 to the query "left", in the second half to "right"."""
    bright = image > 0.5
    half = torch.arange(image.shape[2]).reshape(-1, 1, 1) < image.shape[2] // 2
    sides = torch.cat([bright & half, bright & ~half], dim=1).float()
    queries = queries.expand(len(image), -1, -1)
    return torch.einsum("bns,bshwd->bnhwd", queries, sides) * 200 - 100


def kidneys() -> torch.Tensor:
    image = torch.zeros(1, 1, 8, 8, 8)
    image[0, 0, 1, 2, 3] = image[0, 0, 6, 2, 4] = 1
    return image


def truth() -> torch.Tensor:
    mask = torch.zeros(1, 2, 8, 8, 8)
    mask[0, 0, 1, 2, 3] = mask[0, 1, 6, 2, 4] = 1
    return mask


@pytest.mark.parametrize("axes", [(), (0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_left_stays_left(axes: tuple[int, ...]) -> None:
    mirror = MirrorInferer(RefinementInferer(iterations=0), axes=axes, return_disagreement=True)
    out, disagreement = mirror(kidneys(), lateral, QUERIES, mirrored_queries=MIRRORED)
    assert torch.allclose(out, truth(), atol=1e-6)
    assert (disagreement is None) if not axes else (disagreement.max() < 1e-6)


def test_without_the_exchange_sides_would_be_confused() -> None:
    mirror = MirrorInferer(RefinementInferer(iterations=0), axes=(0,), left_right_axis=None)
    out = mirror(kidneys(), lateral, QUERIES)
    assert out[0, 0, 1, 2, 3] == pytest.approx(0.5)


def test_around_a_window_inferer_and_inside_one() -> None:
    image = torch.rand(1, 1, 11, 8, 9) * 0.4
    image[:, :, 2, 2, 3] = image[:, :, 9, 2, 4] = 1

    def side_of_volume(x: torch.Tensor, q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, 1 - x], dim=1).logit(eps=1e-6)

    inner = MirrorInferer(RefinementInferer(iterations=0), axes=(1, 2))
    inside = PromptWindowInferer((8, 8, 8), window_inferer=inner, progress=False)
    around = MirrorInferer(PromptWindowInferer((8, 8, 8), progress=False), axes=(1, 2))
    expected = torch.cat([image, 1 - image], dim=1)
    for inferer in (inside, around):
        assert torch.allclose(inferer(image, side_of_volume, QUERIES), expected, atol=1e-5)


def test_mirrored_queries_pass_through_the_windows() -> None:
    inner = MirrorInferer(RefinementInferer(iterations=0), axes=(0,))
    inferer = PromptWindowInferer((8, 8, 8), window_inferer=inner, progress=False)
    out = inferer(kidneys(), lateral, QUERIES, mirrored_queries=MIRRORED)
    assert torch.allclose(out, truth(), atol=1e-6)


def test_prompts_flip_with_the_image_and_keep_their_channels() -> None:
    """A network that repeats its prompts gives them back; in each view they lie where the image does."""
    prompts = truth()
    seen = []

    def network(image: torch.Tensor, queries: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        seen.append(torch.equal(given.sum(dim=1, keepdim=True), image))
        return (given - 0.5) * 200

    mirror = MirrorInferer(RefinementInferer(iterations=0), axes=(0, 1, 2))
    out = mirror(kidneys(), network, QUERIES, prompts, mirrored_queries=MIRRORED)
    assert torch.allclose(out, prompts, atol=1e-6)
    assert seen == [True] * 8


def test_disagreement_of_the_views() -> None:
    """A network that answers its position along axis 0: two views say x and 1 - x."""
    place = torch.linspace(0.1, 0.9, 8).reshape(1, 1, 8, 1, 1).expand(1, 2, 8, 8, 8)
    inferer = RefinementInferer(iterations=0)
    mirror = MirrorInferer(inferer, axes=(0,), left_right_axis=None, return_disagreement=True)
    out, disagreement = mirror(kidneys(), lambda x, q, p: place.logit(), QUERIES)
    assert torch.allclose(out, torch.full_like(out, 0.5), atol=1e-6)
    assert torch.allclose(disagreement, (place - 0.5).abs(), atol=1e-6)


def test_the_wrapped_inferer_s_disagreement_joins() -> None:
    def window(image: torch.Tensor, network: object, queries: torch.Tensor, prompts: object, **_: object) -> tuple:
        return image.expand(-1, 2, -1, -1, -1), torch.full_like(image, 0.3)

    mirror = MirrorInferer(window, axes=(1,), return_disagreement=True)
    _, disagreement = mirror(kidneys(), None, QUERIES)
    assert torch.allclose(disagreement, torch.full((1, 1, 8, 8, 8), 0.3))


@pytest.mark.parametrize("given", [None, MIRRORED[:1]])
def test_the_other_side_s_queries_are_needed(given: torch.Tensor | None) -> None:
    with pytest.raises(ValueError, match="needs mirrored_queries"):
        MirrorInferer(RefinementInferer(0), axes=(0, 1))(kidneys(), lateral, QUERIES, mirrored_queries=given)


@pytest.mark.parametrize("arguments", [{"axes": (3,)}, {"axes": (0, 0)}, {"left_right_axis": 5}])
def test_meaningless_axes_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match="mirroring"):
        MirrorInferer(RefinementInferer(0), **arguments)
