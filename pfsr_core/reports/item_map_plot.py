"""The item map as a picture: above the global item vectors, below those of the client."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pfsr_core.reports.style import COLOURS, GREY, figure_svg, save_figure
from pfsr_core.runs.item_map import NEAREST, ItemMap, ItemMapError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OWN, OTHERS = COLOURS["fed-avg"], "#b6bcc6"
ROW_TITLES = ("global", "personalized")
KINDS = (".png", ".svg", ".pdf")
NOTE = (
    "Item vectors after the last round, the global ones above and the personalized ones below, for "
    "the largest, the median and the smallest client. Orange: items that the client trained; grey: "
    "the others; a thin line leads to an item's global vector. Both panels of a client have the "
    "same axes and scale: horizontal, the direction in which personalization moves its items most; "
    "vertical, the direction of the largest remaining spread. Moved: mean distance between the two "
    "vectors of an item, relative to the mean length of a global vector. Near: share of own items "
    f"among the {NEAREST} nearest neighbours of an own item."
)


def item_map_svg(maps: Sequence[ItemMap]) -> str:
    """The picture as ``<svg>``, one column a client; "" without any."""
    if not maps:
        return ""
    return figure_svg(lambda figure: _draw(figure, maps), "item-map", _size(maps))


def save_item_map(maps: Sequence[ItemMap], path: Path) -> None:
    """Writes the picture to a file.

    Raises:
        ItemMapError: ``path`` ends with none of KINDS.
    """
    if path.suffix.lower() not in KINDS:
        raise ItemMapError(f"{path}: no picture. Fix: give it one of {', '.join(KINDS)}.")
    save_figure(lambda figure: _draw(figure, maps), path, _size(maps))


def item_map_text(maps: Sequence[ItemMap]) -> str:
    """The figures of the picture, one line a client."""
    return "\n".join(f"{one.client}: {', '.join(_words(one))}" for one in maps)


def _words(one: ItemMap) -> tuple[str, str]:
    moved = f"own items moved {one.moved_own:.0%}, others {one.moved_others:.1%}"
    chance = f"{one.near_by_chance:.0%} by chance"
    return moved, f"near: {one.near_before:.0%} before, {one.near_after:.0%} after, {chance}"


def _size(maps: Sequence[ItemMap]) -> tuple[float, float]:
    """Inches: clients side by side, two rows; a single one has both panels side by side."""
    return (10.4, 5.2) if len(maps) == 1 else (10.4, 14.6 / len(maps) + 1.9)


def _draw(figure: Figure, maps: Sequence[ItemMap]) -> None:
    count = len(maps)
    shape = (1, 2) if count == 1 else (2, count)
    grid = figure.subplots(*shape, squeeze=False).reshape(2, count)
    for column, one in zip(grid.T, maps, strict=True):
        _panel(column[0], one, after=False)
        _panel(column[1], one, after=True)
        column[0].set_title(f"{one.client}: {one.trained} own items", fontsize=10.5)
        column[1].set_xlabel("\n".join(_words(one)), fontsize=9.2)
    for axes, name in zip(grid[:, 0], ROW_TITLES, strict=True):
        axes.set_ylabel(name, fontsize=11)
    handles, labels = grid[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, markerscale=2.5)


def _panel(axes: Axes, one: ItemMap, *, after: bool) -> None:
    own, before = np.array(one.own), np.array(one.before)
    points = np.array(one.after) if after else before
    if after:
        pairs = np.stack([before[own], points[own]])
        axes.plot(*pairs.transpose(2, 0, 1), color=OWN, linewidth=0.6, alpha=0.3, rasterized=True)
    for chosen, label, colour, size in (
        (~own, "other items", OTHERS, 5),
        (own, "items that the client trained", OWN, 9),
    ):
        x, y = points[chosen].T
        axes.scatter(x, y, size, color=colour, linewidths=0, label=label, rasterized=True)
    _frame(axes, np.concatenate([before, np.array(one.after)]))


def _frame(axes: Axes, points: np.ndarray) -> None:
    """The same limits in both panels, with room for both; the axes have no unit to show."""
    low, high = points.min(0), points.max(0)
    half = max(float((high - low).max()) / 2, 1e-9) * 1.05
    middle = (low + high) / 2
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
    axes.set_aspect("equal")
    axes.set(xticks=[], yticks=[])
    axes.axhline(0.0, color=GREY, linewidth=0.5, alpha=0.4, zorder=0)
    axes.axvline(0.0, color=GREY, linewidth=0.5, alpha=0.4, zorder=0)
