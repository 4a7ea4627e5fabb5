"""Windows at fixed places of an image: what was computed of one serves every question that looks through it.

The published program lays the fine stage's windows from the corner of the region that a question leads to. Regions
differ from question to question, and so do all windows, be it by a voxel. Here a question chooses among places that
the image alone decides, and choices fall together: structures near each other are seen through the same window.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.utils import convert_to_tensor

from scripts.inferers.grid_boxes import as_box
from scripts.inferers.window_grid import WindowGrid
from scripts.transforms.prompt_shapes import Box

ONE, SEVERAL = 4, 8
"""Where one window suffices along an axis it may begin at every quarter of a window: few places are shared often, and a
box of three quarters of a window always fits one. Several begin and end at eighths, lest many be needed."""
CONTEXT = 16
"""One window keeps a box a 16th of its side from its rim where it can, and where the image goes on there."""
EVEN = 1e-6
"""Mean grey value above the darkest up to which an image counts as even."""


def covering_windows(windows: WindowGrid, middle: Sequence[float], box: Box) -> Box:
    """The part of a grid, made of whole windows, through which a box is seen.

    Axis by axis: one window where one suffices, of those the one nearest the image's middle; else as many as are
    needed. The windows that ``WindowGrid`` lays over the part are the chosen ones.

    Args:
        windows: of the whole grid.
        middle: (h, w, d) voxel of the image's middle, see ``image_middle``.
        box: slices with start and stop on the grid.
    """
    return as_box([_along(*axis) for axis in zip(windows.shape, windows.window, middle, box, strict=True)])


def _along(side: int, size: int, middle: float, box: slice) -> slice:
    """One axis of ``covering_windows``: of a grid of ``side`` voxels, with windows of ``size``."""
    if side <= size:
        return slice(0, side)
    rim = size // CONTEXT
    fitting = [place for place in _places(side, size, ONE) if place <= box.start and box.stop <= place + size]
    roomy = [p for p in fitting if p <= max(box.start - rim, 0) and min(box.stop + rim, side) <= p + size]
    if fitting:
        start = min(roomy or fitting, key=lambda place: (abs(place + size / 2 - middle), place))
        return slice(start, start + size)
    places = _places(side, size, SEVERAL)
    start = max(place for place in places if place <= box.start)
    stop = min(place for place in places if box.stop <= place + size) + size
    return slice(start, max(stop, start + size))


def _places(side: int, size: int, parts: int) -> list[int]:
    """Where a window may begin: at multiples of a part of its size, and where it ends with the grid."""
    return [*range(0, side - size, max(1, size // parts)), side - size]


def image_middle(image: torch.Tensor) -> tuple[float, float, float]:
    """(h, w, d) of the centre of mass of the grey values of ``[1, H, W, D]``, the darkest being nothing."""
    grey = convert_to_tensor(image, track_meta=False)[0]
    nothing, places = float(grey.min()), []
    for axis, side in enumerate(grey.shape):
        others = [other for other in range(3) if other != axis]
        weight = grey.sum(dim=others, dtype=torch.float64) - nothing * (grey.numel() / side)
        total = float(weight.sum())
        middle = float(weight @ torch.arange(side, dtype=torch.float64, device=weight.device))
        # An even image leaves nothing but rounding.
        places.append(middle / total if total > EVEN * grey.numel() else (side - 1) / 2)
    return places[0], places[1], places[2]
