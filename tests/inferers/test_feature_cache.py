"""Features are reused where everything they were computed from is the same, and nowhere else."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from scripts.inferers import AutocastInferer, FeatureCache, MirrorInferer, PromptWindowInferer, RefinementInferer
from scripts.inferers.feature_cache import digest
from scripts.networks import MaskHead, MedalS, PlainUNet, QueryDecoder, TextProjection

IMAGE = torch.randn(1, 1, 12, 8, 16, generator=torch.Generator().manual_seed(3))
QUERIES = torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(4))


def small_network(seed: int = 0) -> MedalS:
    features = (4, 8, 12)
    torch.manual_seed(seed)
    return MedalS(
        PlainUNet(2, features, (1, 2, 2)), QueryDecoder(24, 24, 2, 4, 32), MaskHead(24, 16, 4), TextProjection(10, 24)
    ).eval()


def counted(network: MedalS) -> list[int]:
    """A list that grows by the number of images whenever the U-Net runs."""
    runs: list[int] = []
    network.backbone.register_forward_hook(lambda module, args, out: runs.append(len(args[0])))
    return runs


def windows(cache: FeatureCache | None, batch: int = 1, amp: bool = False, **settings: object) -> PromptWindowInferer:
    refine = AutocastInferer(RefinementInferer(**{"iterations": 0, "cache": cache, **settings}), enabled=amp)
    return PromptWindowInferer((8, 8, 8), batch, window_inferer=refine, progress=False)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_second_question_runs_no_unet(batch: int) -> None:
    network, cache = small_network(), FeatureCache(1.0, dtype=None)
    runs = counted(network)
    windows(cache, batch)(IMAGE, network, QUERIES[0])
    assert sum(runs) == 6
    second = windows(cache, batch)(IMAGE, network, QUERIES[1])
    assert sum(runs) == 6
    assert cache.statistics.hits == cache.statistics.misses == 6
    assert torch.equal(second, windows(None, batch)(IMAGE, network, QUERIES[1]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", None])
def test_an_answer_does_not_depend_on_whether_the_cache_helped(dtype: str | None) -> None:
    network, cache = small_network(), FeatureCache(1.0, dtype=dtype)
    first = windows(cache)(IMAGE, network, QUERIES[0])
    assert torch.equal(windows(cache)(IMAGE, network, QUERIES[0]), first)
    assert torch.equal(windows(FeatureCache(0.0, dtype=dtype))(IMAGE, network, QUERIES[0]), first)
    assert torch.allclose(first, windows(None)(IMAGE, network, QUERIES[0]), atol=2e-2 if dtype == "bfloat16" else 2e-3)


def test_a_cache_without_a_budget_hashes_and_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The config's default keeps nothing: then no window, no weights and no features may be carried to the host."""
    expected = windows(FeatureCache(1.0))(IMAGE, small_network(), QUERIES[0])
    cache = FeatureCache(0.0)

    def refuse(*_: object) -> None:
        raise AssertionError("a cache that keeps nothing did the work of one that does")

    monkeypatch.setattr("scripts.inferers.feature_cache.digest", refuse)
    monkeypatch.setattr(cache, "_stored", refuse)
    assert torch.equal(windows(cache)(IMAGE, small_network(), QUERIES[0]), expected)
    assert cache.statistics.entries == cache.statistics.misses == 0


def load(network: MedalS) -> None:
    network.load_state_dict(small_network(1).state_dict())


def edit_in_place(network: MedalS) -> None:
    with torch.no_grad():
        network.mask_head.fusion.conv.bias[0] += 1


def edit_past_autograd(network: MedalS) -> None:
    network.backbone.encoder[0][0].conv.weight.data.mul_(1.5)


def exchange_storage(network: MedalS) -> None:
    weight = network.backbone.encoder[0][0].conv.weight
    weight.data = weight.data * 1.5


def train_a_step(network: MedalS) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(IMAGE[..., :8], QUERIES[0], torch.zeros(1, 5, 12, 8, 8)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("change", [load, edit_in_place, edit_past_autograd, exchange_storage, train_a_step])
@pytest.mark.parametrize("channels_last", [False, True])
def test_other_weights_never_hit(change: Callable[[MedalS], None], channels_last: bool) -> None:
    network, cache = small_network(), FeatureCache(1.0, dtype=None)
    if channels_last:
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    windows(cache)(IMAGE, network, QUERIES[0])
    change(network)
    out = windows(cache)(IMAGE, network, QUERIES[0])
    assert cache.statistics.hits == 0
    assert torch.equal(out, windows(None)(IMAGE, network, QUERIES[0]))


def test_another_network_never_hits_even_with_the_same_weights() -> None:
    """Equal parameters do not make equal networks: the head's last activation is no parameter."""
    cache, first, second = FeatureCache(1.0), small_network(), small_network()
    windows(cache)(IMAGE, first, QUERIES[0])
    windows(cache)(IMAGE, second, QUERIES[0])
    assert cache.statistics.hits == 0


def test_a_network_that_took_a_dead_one_s_place_never_hits() -> None:
    """Python gives the address of a deleted network to the next one; its number in the cache is its own."""
    cache = FeatureCache(1.0)
    for seed in range(4):
        network = small_network(seed)
        windows(cache)(IMAGE, network, QUERIES[0])
        del network
    assert cache.statistics.hits == 0


@pytest.mark.parametrize("place", [(0, 0, 0, 0, 0), (0, 0, 11, 7, 15), (0, 0, 6, 3, 8)])
def test_another_image_never_hits_where_one_voxel_differs(place: tuple[int, ...]) -> None:
    network, cache = small_network(), FeatureCache(1.0, dtype=None)
    inferer = windows(cache)
    inferer(IMAGE, network, QUERIES[0])
    other = IMAGE.clone()
    other[place] += 1e-6
    changed = len(inferer.touched_windows(IMAGE.shape[2:], [slice(p, p + 1) for p in place[2:]]))
    out = inferer(other, network, QUERIES[0])
    assert cache.statistics.hits == 6 - changed
    assert torch.equal(out, windows(None)(other, network, QUERIES[0]))


def test_another_precision_never_hits() -> None:
    network, cache = small_network(), FeatureCache(1.0, dtype=None)
    windows(cache)(IMAGE, network, QUERIES[0])
    reduced = windows(cache, amp=True)(IMAGE, network, QUERIES[0])
    windows(cache)(IMAGE.double().float().to(torch.float64), network.double(), QUERIES[0].double())
    assert cache.statistics.hits == 0
    assert torch.equal(reduced, windows(None, amp=True)(IMAGE, small_network(), QUERIES[0]))


def test_digest_knows_values_type_and_shape() -> None:
    x = torch.zeros(2, 3)
    others = [torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.float64), torch.zeros(6), torch.zeros(2, 3).int(), -x]
    assert len({digest(t) for t in [x, *others]}) == 6
    assert digest(torch.arange(6.0).reshape(2, 3).T) == digest(torch.arange(6.0).reshape(2, 3).T.contiguous())
    assert digest(torch.zeros(0, 3)) != digest(torch.zeros(3, 0))


def test_prompts_bypass_the_cache_and_training_too() -> None:
    network, cache = small_network(), FeatureCache(1.0)
    runs = counted(network)
    prompts = torch.ones(1, 5, 12, 8, 16)
    for _ in range(2):
        windows(cache)(IMAGE, network, QUERIES[0], prompts)
    with torch.enable_grad():
        RefinementInferer(iterations=0, cache=cache)(IMAGE[..., :8, :8, :8], network, QUERIES[0])
    assert sum(runs) == 13
    assert cache.statistics.entries == 0


def test_refinements_start_from_remembered_features() -> None:
    network, cache = small_network(), FeatureCache(1.0, dtype=None)
    expected = windows(None, iterations=1)(IMAGE, network, QUERIES[0])
    runs = counted(network)
    for _ in range(2):
        assert torch.equal(windows(cache, iterations=1)(IMAGE, network, QUERIES[0]), expected)
    assert sum(runs) == 6 * (3 + 2)


def test_cached_refinement_and_text_only_keep_apart() -> None:
    network, cache = small_network(), FeatureCache(1.0, dtype=None)
    for mode in ("exact", "cached", "exact", "cached"):
        out = windows(cache, iterations=1, mode=mode)(IMAGE, network, QUERIES[0])
        assert torch.equal(out, windows(None, iterations=1, mode=mode)(IMAGE, network, QUERIES[0]))


def test_flipped_views_have_their_own_features() -> None:
    network, cache = small_network(), FeatureCache(1.0, dtype=None)
    outs = []
    for own in (cache, cache, None):
        mirror = MirrorInferer(RefinementInferer(iterations=0, cache=own), axes=(0, 1))
        inferer = PromptWindowInferer((8, 8, 8), window_inferer=mirror, progress=False)
        outs.append(inferer(IMAGE, network, QUERIES[0], mirrored_queries=QUERIES[1]))
    assert cache.statistics.misses == cache.statistics.hits == 24
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def block(value: float, megabytes: float = 1.0) -> tuple[torch.Tensor]:
    return (torch.full((int(megabytes * 2**20 / 4),), value),)


def test_the_oldest_goes_first_and_bytes_are_kept_to() -> None:
    cache = FeatureCache(3 / 1024, dtype=None)
    for key in "abc":
        cache.put(key, block(1.0))
    assert cache.get("a") is not None
    cache.put("d", block(1.0))
    assert cache.get("b") is None
    assert [cache.get(key) is not None for key in "acd"] == [True, True, True]
    assert cache.statistics.bytes == 3 * 2**20
    assert cache.statistics.evictions == 1
    cache.put("d", block(2.0, 0.5))
    assert cache.statistics.bytes == 2.5 * 2**20
    cache.put("huge", block(1.0, 4.0))
    assert cache.get("huge") is None
    assert cache.statistics.entries == 3
    cache.clear()
    assert cache.statistics.bytes == cache.statistics.entries == cache.statistics.hits == 0


def test_half_precision_takes_half_the_bytes_and_never_overflows() -> None:
    cache = FeatureCache(1.0)
    cache.put("a", block(1.0))
    assert cache.statistics.bytes == 2**19
    large = torch.tensor([1e6, 1.0])
    assert torch.equal(cache.put("b", (large,))[0], large)
    found = cache.get("b")
    assert found is not None
    assert torch.equal(found[0], large)
    assert found[0].dtype == torch.float32


def test_a_row_of_a_batch_does_not_hold_the_batch() -> None:
    cache = FeatureCache(1.0, dtype=None)
    batch = torch.rand(8, 1000)
    cache.put("row", (batch[2:3],))
    stored = cache.get("row")
    assert stored is not None
    assert stored[0].untyped_storage().nbytes() == 4000


def test_threads_share_a_cache() -> None:
    network, cache = small_network(), FeatureCache(60_000 / 2**30)
    expected = windows(cache)(IMAGE, network, QUERIES[0])
    outs: list[torch.Tensor] = []

    def work() -> None:
        for _ in range(3):
            outs.append(windows(cache)(IMAGE, network, QUERIES[0]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outs) == 12
    assert all(torch.equal(out, expected) for out in outs)
    assert 0 <= cache.statistics.bytes <= 60_000


@pytest.mark.parametrize("arguments", [{"max_gb": -1}, {"dtype": "float8"}])
def test_meaningless_settings_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match="feature cache"):
        FeatureCache(**arguments)
