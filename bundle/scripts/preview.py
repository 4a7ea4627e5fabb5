"""Draw a segmentation on three planes of the patient, with outlines and a legend, as a small PNG.

The planes lie along the patient's axes whatever the scan's orientation. Radiological convention: the patient's left
is on the viewer's right; the sagittal plane faces left, front on the viewer's left. Letters in the picture say so.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

BACKGROUND = "#0b0d10"
TEXT = "#e8eaed"
FAINT = "#9aa1aa"
ACCENT = "#ffd24a"
BYTES = 300_000
GRAY_LEVELS = (64, 40, 24, 14)
SHADES = 4
SEARCH_POINTS = 128
# What a structure already shown in an earlier plane still adds to a later one.
REPEAT_WEIGHT = 0.25
GRAY_PERCENTILES = (0.5, 99.7)


@dataclass(frozen=True)
class Plane:
    """One anatomical plane: the world axis it is perpendicular to, the axes shown, and its letters."""

    name: str
    normal: int
    across: int
    up: int
    left_letter: str
    right_letter: str
    normal_letters: tuple[str, str]


# World axes are 0 = x (left to right), 1 = y (back to front), 2 = z (feet to head).
PLANES = (
    Plane("axial", 2, 0, 1, "R", "L", ("I", "S")),
    Plane("coronal", 1, 0, 2, "R", "L", ("P", "A")),
    Plane("sagittal", 0, 1, 2, "A", "P", ("L", "R")),
)


def draw_preview(
    image: np.ndarray,
    labels: np.ndarray,
    affine: np.ndarray,
    structures: Sequence[Mapping[str, Any]],
    title: str,
    pixels: int = 460,
    rows: int = 22,
) -> bytes:
    """Draw the picture.

    Args:
        image: grey values ``[H, W, D]``.
        labels: label map ``[H, W, D]`` on the same grid.
        affine: 4x4, voxel to RAS world in mm.
        structures: entries of the report: ``name``, ``label``, ``color`` (0..255 each) and ``volume_ml``.
        title: line above the planes.
        pixels: height of the planes in pixels.
        rows: most lines the legend shows.

    Returns:
        PNG; the same arguments give the same bytes.
    """
    low, high = _world_box(image.shape, affine)
    positions = _choose_positions(labels, affine, low, high, [int(s["label"]) for s in structures])
    step = max((high - low).max() / pixels, 1e-6)  # mm in a pixel, one scale for all planes
    slices = [_cut(image, labels, affine, low, high, plane, positions[plane.normal], step) for plane in PLANES]
    grays = np.percentile(np.concatenate([gray[np.isfinite(gray)] for gray, _ in slices]), GRAY_PERCENTILES)

    widths = [gray.shape[1] for gray, _ in slices]
    heights = [gray.shape[0] for gray, _ in slices]
    gap, head, foot, legend = 14, 40, 30, 330
    body = max(max(heights), 300)
    total = (sum(widths) + gap * 4 + legend, body + head + foot)
    figure = Figure(figsize=(total[0] / 100, total[1] / 100), dpi=100, facecolor=BACKGROUND)
    figure.text(gap / total[0], 1 - 22 / total[1], title, color=TEXT, fontsize=12, va="center", weight="bold")
    left = gap
    for plane, (gray, mask), width, height in zip(PLANES, slices, widths, heights, strict=True):
        bottom = foot + (body - height) / 2
        box = (left / total[0], bottom / total[1], width / total[0], height / total[1])
        _draw_plane(figure, box, gray, mask, grays, structures)
        _annotate(figure, total, (left, bottom, width, height), plane, positions[plane.normal])
        left += width + gap
    _draw_legend(figure, total, left + gap, foot + body, structures, rows)
    figure.text(
        gap / total[0],
        12 / total[1],
        "Radiological view: the patient's left (L) is on the right of the picture.  Research use only.",
        color=FAINT,
        fontsize=8,
        va="center",
    )
    return _encode(figure, structures)


def _world_box(shape: Sequence[int], affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest world coordinate of a volume's voxel edges, each [3] in mm."""
    ends = np.array(np.meshgrid(*[(-0.5, side - 0.5) for side in shape], indexing="ij")).reshape(3, -1).T
    corners = nib.affines.apply_affine(affine, ends)
    return corners.min(axis=0), corners.max(axis=0)


def _sample(volume: np.ndarray, affine: np.ndarray, points: np.ndarray, order: int) -> np.ndarray:
    """Values at world points ``[..., 3]``; 0 outside."""
    index = np.moveaxis(nib.affines.apply_affine(np.linalg.inv(affine), points), -1, 0)
    output = np.float32 if order else volume.dtype
    return map_coordinates(volume, index, order=order, mode="constant", cval=0, output=output, prefilter=False)


def _choose_positions(
    labels: np.ndarray, affine: np.ndarray, low: np.ndarray, high: np.ndarray, ids: Sequence[int]
) -> np.ndarray:
    """World coordinate of the plane perpendicular to each axis, so that together they show most of the structures.

    A structure counts by its area in the plane relative to its largest area, so that a small one weighs as much as a
    large one; what an earlier plane shows well, a later one need not. The middle of the volume where nothing was found.
    """
    step = max((high - low).max() / SEARCH_POINTS, 1e-6)
    axes = [np.arange(a + step / 2, b, step) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    lookup = np.zeros(int(max(labels.max(), max(ids))) + 1, dtype=np.int64)
    lookup[list(ids)] = np.arange(1, len(ids) + 1)
    found = lookup[_sample(labels, affine, grid, order=0)]
    place = (low + high) / 2
    shown = np.zeros(len(ids))
    for axis in (2, 1, 0):
        along = np.moveaxis(found, axis, 0).reshape(len(axes[axis]), -1)
        rows = np.arange(len(along))[:, None] * (len(ids) + 1)
        area = np.bincount((along + rows).ravel(), minlength=len(along) * (len(ids) + 1)).reshape(len(along), -1)[:, 1:]
        if area.any():
            share = area / np.maximum(area.max(axis=0), 1)
            best = int((np.maximum(share, shown) + REPEAT_WEIGHT * share).sum(axis=1).argmax())
            shown = np.maximum(shown, share[best])
            place[axis] = axes[axis][best]
    return place


def _cut(
    image: np.ndarray,
    labels: np.ndarray,
    affine: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    plane: Plane,
    position: float,
    step: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Grey values and labels of one plane as it is shown: row 0 on top, column 0 on the viewer's left."""
    # Both run from high to low: the patient's right, or front, to the viewer's left; the head on top.
    across = np.arange(low[plane.across] + step / 2, high[plane.across], step)[::-1]
    up = np.arange(low[plane.up] + step / 2, high[plane.up], step)[::-1]
    points = np.empty((len(up), len(across), 3))
    points[..., plane.normal] = position
    points[..., plane.across] = across[None, :]
    points[..., plane.up] = up[:, None]
    return _sample(image, affine, points, order=1), _sample(labels, affine, points, order=0)


def _draw_plane(
    figure: Figure,
    box: Sequence[float],
    gray: np.ndarray,
    mask: np.ndarray,
    grays: np.ndarray,
    structures: Sequence[Mapping[str, Any]],
) -> None:
    axes = figure.add_axes(box)  # type: ignore[call-overload]
    axes.imshow(gray, cmap="gray", vmin=grays[0], vmax=max(grays[1], grays[0] + 1e-6), interpolation="nearest")
    for structure in structures:
        inside = mask == structure["label"]
        if inside.any():
            # A pixel's worth of smoothing rounds the stair steps without moving the line.
            smooth = gaussian_filter(np.pad(inside, 1).astype(np.float32), 1.0)[1:-1, 1:-1]
            color = tuple(value / 255 for value in structure["color"])
            if smooth.max() > 0.5:
                axes.contour(smooth, levels=[0.5], colors=[color], linewidths=1.3)
    axes.set_axis_off()


def _annotate(figure: Figure, total: tuple[int, int], box: tuple[float, ...], plane: Plane, position: float) -> None:
    """Side letters at the middle of the edges, plane name and position below."""
    left, bottom, width, height = box
    outlined = [withStroke(linewidth=3, foreground=BACKGROUND)]
    style: dict[str, Any] = {"color": ACCENT, "fontsize": 13, "weight": "bold", "va": "center"}
    style["path_effects"] = outlined
    middle = (bottom + height / 2) / total[1]
    figure.text((left + 5) / total[0], middle, plane.left_letter, ha="left", **style)
    figure.text((left + width - 5) / total[0], middle, plane.right_letter, ha="right", **style)
    letter = plane.normal_letters[int(position >= 0)]
    figure.text(
        (left + width / 2) / total[0],
        (bottom + 8) / total[1],
        f"{plane.name}  {letter} {abs(position):.0f} mm",
        color=TEXT,
        fontsize=9,
        ha="center",
        va="bottom",
        path_effects=outlined,
    )


def _draw_legend(
    figure: Figure, total: tuple[int, int], left: float, top: float, structures: Sequence[Mapping[str, Any]], rows: int
) -> None:
    """Colour, name and volume of each structure, one a line."""
    pitch = min(24.0, (top - 34) / max(min(len(structures), rows) + 1, 1))
    size = 10 if pitch >= 20 else 8.5
    for number, structure in enumerate(structures[:rows]):
        y = top - 10 - pitch * number
        color = tuple(value / 255 for value in structure["color"])
        volume = "not found" if structure["volume_ml"] is None else f"{structure['volume_ml']:.1f} ml"
        ink = FAINT if structure["volume_ml"] is None else TEXT
        figure.patches.append(
            Rectangle(
                (left / total[0], (y - 5) / total[1]),
                14 / total[0],
                10 / total[1],
                transform=figure.transFigure,
                facecolor=color,
                figure=figure,
            )
        )
        name = structure["name"] if len(structure["name"]) <= 30 else f"{structure['name'][:29]}…"
        figure.text((left + 22) / total[0], y / total[1], name, color=ink, fontsize=size, va="center")
        figure.text((total[0] - 16) / total[0], y / total[1], volume, color=ink, fontsize=size, va="center", ha="right")
    if len(structures) > rows:
        y = top - 10 - pitch * rows
        more = f"and {len(structures) - rows} more, see the report"
        figure.text((left + 22) / total[0], y / total[1], more, color=FAINT, fontsize=size, va="center")


def _encode(figure: Figure, structures: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG with a palette of greys and the structures' colours: small, and with no metadata that could change.

    Fewer greys are taken until the file is no larger than ``BYTES``.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    colors = np.unique(np.array([s["color"] for s in structures] + [_rgb(ACCENT)], dtype=float), axis=0)
    encoded = b""
    for levels in GRAY_LEVELS:
        ramp = np.linspace(0, 255, levels)[:, None].repeat(3, axis=1)
        # An outline's edge is a mix of its colour and the grey beside it.
        room = max(1, min(SHADES, (250 - levels) // len(colors)))
        shades = [colors * (1 - t) + _rgb(BACKGROUND) * t for t in np.linspace(0, 0.75, room)]
        entries = np.concatenate([ramp, [_rgb(BACKGROUND), _rgb(FAINT), _rgb(TEXT)], *shades])[:256]
        palette = Image.new("P", (1, 1))
        palette.putpalette(entries.round().astype(np.uint8).tobytes())
        out = io.BytesIO()
        picture.quantize(palette=palette, dither=Image.Dither.NONE).save(out, format="PNG", optimize=True)
        encoded = out.getvalue()
        if len(encoded) <= BYTES:
            break
    return encoded


def _rgb(color: str) -> np.ndarray:
    return np.array(to_rgb(color)) * 255
