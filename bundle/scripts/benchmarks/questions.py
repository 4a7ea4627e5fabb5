"""Many targets in one call, a second question about the same volume, and the cost of more windows."""

from __future__ import annotations

import torch
from monai.bundle import ConfigParser

from scripts.benchmarks.measuring import Row, Section, Settings, side_by_side
from scripts.benchmarks.shipped import MODALITY, head, known_structures, pipeline
from scripts.errors import InputError
from scripts.inferers import FeatureCache, PromptWindowInferer
from scripts.inferers.stage import COARSE
from scripts.pipeline import Case, Pipeline

# Share of a window that a further window adds, at an overlap of one half.
STEP = 0.5


def run_parallel(settings: Settings) -> Section:
    """All targets in one call against one call for each."""
    parser = settings.parser()
    network, inferer, roi = _windows(parser, settings)
    image, queries = _random(parser, _volume_of(roi, (2, 1, 1)), settings, settings.queries)

    def one_after_another() -> None:
        for query in queries.split(1):
            inferer(image, network, query)

    with torch.inference_mode():
        inferer(image, network, queries[:1])
        seconds = side_by_side(
            {"together": lambda: inferer(image, network, queries), "one_after_another": one_after_another},
            1 if settings.quick else 2,
            settings.device,
            warm_up=False,
        )
    count = settings.queries
    return Section(
        f"{count} targets in one call, small network, {len(inferer.windows(image.shape[2:]))} windows of {roi[0]}^3",
        [
            Row(f"{count} targets together / one after another", seconds["together"] / seconds["one_after_another"],
                goal=0.05),
            Row("together", seconds["together"], "s"),
            Row("one after another", seconds["one_after_another"], "s"),
        ],
        {"seconds": seconds, "targets": count, "volume": list(image.shape[2:])},
    )  # fmt: skip


def run_second_question(settings: Settings) -> Section:
    """Other targets on a volume that was asked about before: stage 1 from the image to its label map."""
    title = "A second, different question about the same volume, stage 1, words only, shipped weights, MNI152 head"
    try:
        volume = head(settings)
    except InputError as e:
        return Section(title, [], notes=[f"Not measured: {e}."])
    system = pipeline(settings, refinements=0, feature_cache_gb=8)
    cache = _cache_of(system)
    known = known_structures(settings)
    rows, seconds = [], {}
    for count in (4, len(known) // 2):
        first = system.prepare(known[:count], MODALITY, volume)
        second = system.prepare(known[count : 2 * count], MODALITY, volume)

        def afresh(case: Case = first) -> None:
            cache.clear()
            system.ask(case)

        calls = {"first": afresh, "second": lambda case=second: system.ask(case)}
        with torch.inference_mode():
            taken = side_by_side(calls, settings.few_rounds(), settings.device)
        seconds[str(count)] = taken
        rows.append(
            Row(f"second question / first, {count} structures each", taken["second"] / taken["first"], goal=0.15)
        )
        rows.append(Row(f"first question, {count} structures", taken["first"], "s"))
        rows.append(Row(f"second question, {count} structures", taken["second"], "s"))
    return Section(
        title,
        rows,
        {"seconds": seconds, "volume": list(volume.shape[1:]), "cached_gib": cache.statistics.bytes / 2**30},
        ["From the image to the label map, both at 1 mm: resampling, windows, network and merging are all in it."],
    )


def run_windows(settings: Settings) -> Section:
    """Seconds for three sizes of volume."""
    parser = settings.parser()
    network, inferer, roi = _windows(parser, settings)
    counts = ((1, 1, 1), (2, 1, 1), (2, 2, 1)) if settings.quick else ((2, 1, 1), (2, 2, 2), (3, 3, 2))
    found = {}
    for steps in counts:
        image, queries = _random(parser, _volume_of(roi, steps), settings, settings.queries)
        found[len(inferer.windows(image.shape[2:]))] = (image, queries)
    calls = {str(n): (lambda image=i, queries=q: inferer(image, network, queries)) for n, (i, q) in found.items()}
    with torch.inference_mode():
        seconds = side_by_side(calls, settings.few_rounds(), settings.device)
    each = {name: taken / int(name) for name, taken in seconds.items()}
    fewest, most = min(found), max(found)
    rows = [Row(f"{name} windows, seconds each", taken, "s") for name, taken in each.items()]
    drift = each[str(most)] / each[str(fewest)]
    return Section(
        f"Cost in windows, small network, {settings.queries} targets",
        [*rows, Row(f"a window's time among {most} / among {fewest} (1 is linear)", drift, goal=1.15)],
        {"seconds": seconds, "volumes": {str(n): list(i.shape[2:]) for n, (i, _) in found.items()}},
    )


def _windows(parser: ConfigParser, settings: Settings) -> tuple[torch.nn.Module, PromptWindowInferer, list[int]]:
    """The small network, its window inferer as in the config and the window's sides."""
    network = parser.get_parsed_content("network_def").to(settings.device).eval()
    return network, parser.get_parsed_content("coarse").inferer, list(parser["roi_size"])


def _volume_of(roi: list[int], windows: tuple[int, ...]) -> list[int]:
    """Sides of a volume that has so many windows along each axis."""
    return [int(side * (1 + STEP * (count - 1))) for side, count in zip(roi, windows, strict=True)]


def _random(
    parser: ConfigParser, shape: list[int], settings: Settings, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """An image ``[1, 1, H, W, D]`` and queries ``[N, L]``; speed does not depend on what is in them."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 1, *shape, generator=generator)
    queries = torch.randn(count, parser["text_dim"], generator=generator)
    return image.to(settings.device), queries.to(settings.device)


def _cache_of(system: Pipeline) -> FeatureCache:
    """The cache that the config gave to the innermost inferer of stage 1."""
    part: object = system.inferer.stage[COARSE].inferer
    while not isinstance(cache := getattr(part, "cache", None), FeatureCache):
        part = getattr(part, "window_inferer", None) or getattr(part, "inferer")  # noqa: B009
    return cache
