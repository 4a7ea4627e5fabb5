"""The segmentation loss equals the published one and ignores padded query slots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.losses import PromptLoss


@pytest.mark.parametrize("case", range(4))
def test_golden_values_and_gradients(shared: Path, case: int):
    with np.load(shared / "golden" / "loss.npz") as data:
        arrays = {k.removeprefix(f"case{case}_"): data[k] for k in data if k.startswith(f"case{case}_")}
    names = sorted(name for name in arrays if name.startswith("logits_"))
    logits = [torch.from_numpy(arrays[name]).requires_grad_() for name in names]
    masks, query_mask = torch.from_numpy(arrays["mask"]), torch.from_numpy(arrays["query_mask"])

    total = PromptLoss()(logits, masks, query_mask)
    total.backward()
    bce, dice = PromptLoss(reduction="none").components(logits, masks, query_mask)

    assert total.item() == pytest.approx(float(arrays["total"]), abs=1e-5)
    np.testing.assert_allclose(bce.detach(), arrays["per_sample_bce"], atol=1e-5)
    np.testing.assert_allclose(dice.detach(), arrays["per_sample_dice"], atol=1e-5)
    np.testing.assert_allclose(logits[-1].grad, arrays["grad_level_last"], atol=1e-5)
    norms = [level.grad.norm().item() for level in logits]
    np.testing.assert_allclose(norms, arrays["grad_l2_per_level"], atol=1e-5)


def test_padding_changes_nothing():
    g = torch.Generator().manual_seed(0)
    logits, masks = torch.randn(1, 2, 8, 8, 8, generator=g), (torch.rand(1, 2, 8, 8, 8, generator=g) > 0.5)
    padded_logits = torch.cat([logits, torch.randn(1, 3, 8, 8, 8, generator=g)], dim=1)
    padded_masks = torch.cat([masks, torch.ones(1, 3, 8, 8, 8, dtype=torch.bool)], dim=1)
    loss = PromptLoss()
    plain = loss(logits, masks, torch.ones(1, 2))
    padded = loss(padded_logits, padded_masks, torch.tensor([[1, 1, 0, 0, 0]]))
    torch.testing.assert_close(plain, padded)


def test_a_perfect_answer_costs_nothing():
    masks = torch.zeros(1, 1, 8, 8, 8)
    masks[..., :4] = 1
    assert PromptLoss()(masks * 200 - 100, masks, torch.ones(1, 1)).item() < 1e-6


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"logits \(1, 2, 4, 4, 4\), masks \(1, 3, 4, 4, 4\)"):
        PromptLoss()(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 3, 4, 4, 4), torch.ones(1, 3))
    with pytest.raises(ValueError, match="5 scales"):
        PromptLoss()([torch.zeros(1, 1, 4, 4, 4)] * 5, torch.zeros(1, 1, 4, 4, 4), torch.ones(1, 1))
