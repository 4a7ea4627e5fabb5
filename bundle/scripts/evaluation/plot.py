"""Draw the scores: a box plot for each structure, one panel for each score."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from scripts.evaluation.case_scores import SCORES, Row

TITLES = {"dsc": "DSC", "nsd": "NSD", "f1": "F1", "dsc_tp": "DSC-TP"}
BOX_INCHES, MARGIN_INCHES, PANEL_INCHES, NAME_INCHES = 0.24, 1.0, 2.6, 2.0
LEAST_BOXES = 12
DOTS = 110


def draw_scores(rows: Sequence[Row], title: str = "") -> bytes:
    """A PNG with a box for each structure, a dot in it for each case, and a panel for each score.

    Args:
        rows: as ``score_pair`` gives them; structures are drawn in their order.
        title: above all panels.

    Raises:
        ValueError: no row has a score.
    """
    shown = [score for score in SCORES if any(row[score] is not None for row in rows)]
    if not shown:
        raise ValueError("evaluate: no scores to draw")
    several = len({row["modality"] for row in rows}) > 1
    names = list(dict.fromkeys(_name(row, several) for row in rows if any(row[score] is not None for score in shown)))
    size = (MARGIN_INCHES + BOX_INCHES * max(len(names), LEAST_BOXES), NAME_INCHES + PANEL_INCHES * len(shown))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    grey = {"color": "0.5"}
    for panel, score in zip(panels, shown, strict=True):
        columns: dict[str, list[float]] = {name: [] for name in names}
        for row in rows:
            if row[score] is not None:
                columns[_name(row, several)].append(row[score])
        places = range(len(names))
        panel.boxplot(
            list(columns.values()), positions=places, widths=0.6, showfliers=False, boxprops=grey, whiskerprops=grey,
            capprops=grey, medianprops={"color": "black"},
        )  # fmt: skip
        for place, values in zip(places, columns.values(), strict=True):
            panel.plot([place] * len(values), values, ".", color="tab:blue", alpha=0.5, markersize=4)
        panel.set_ylim(-0.02, 1.02)
        panel.set_ylabel(TITLES[score], fontsize=10)
        panel.grid(axis="y", color="0.9")
        panel.tick_params(axis="y", labelsize=8)
        panel.set_xticks(list(places), names, rotation=90, fontsize=8)
    figure.suptitle(title, fontsize=11)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DOTS)
    return content.getvalue()


def _name(row: Row, several: bool) -> str:
    return f"{row['structure']} ({row['modality']})" if several else str(row["structure"])
