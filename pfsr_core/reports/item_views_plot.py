"""Item views as a picture: above the global one, below the same items as the client has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pfsr_core.reports.style import COLOURS, GREY, figure_svg, save_figure
from pfsr_core.runs.item_views import NEAREST, ItemViews, ItemViewsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OWN, OTHERS = COLOURS["fed-avg"], "#b6bcc6"
NAMES = ("global", "personalized")
KINDS = (".png", ".svg", ".pdf")
NOTE = (
    "After the last round, the items as the federation sees them and as a client has them after "
    "personalization: of the largest client, the median one and the smallest. Orange: items that "
    "the client trained; grey: the others. A thin line leads back to where an item was. Both views "
    "of a client have the same two axes, in one scale: across, the direction in which "
    "personalization moved its items most; up, the direction of most spread in what is left. "
    "Moved: mean distance between the views, over the mean length of a global item vector. Near: "
    f"share of own items among the {NEAREST} nearest of an own one."
)


def item_views_svg(views: Sequence[ItemViews]) -> str:
    """One column a client, as ``<svg>``; "" without any."""
    if not views:
        return ""
    return figure_svg(lambda figure: _draw(figure, views), "item-views", _size(views))


def save_item_views(views: Sequence[ItemViews], path: Path) -> None:
    """The same as a file of one of KINDS. Raises ItemViewsError for another ending."""
    if path.suffix.lower() not in KINDS:
        raise ItemViewsError(f"{path}: no picture. Fix: give it one of {', '.join(KINDS)}.")
    save_figure(lambda figure: _draw(figure, views), path, _size(views))


def item_views_text(views: Sequence[ItemViews]) -> str:
    """What the picture shows of each client, in words."""
    return "\n".join(f"{one.client}: {', '.join(_words(one))}" for one in views)


def _words(one: ItemViews) -> tuple[str, str]:
    moved = f"own items moved {one.moved_own:.0%}, others {one.moved_others:.1%}"
    chance = f"{one.near_by_chance:.0%} by chance"
    return moved, f"near: {one.near_before:.0%} before, {one.near_after:.0%} after, {chance}"


def _size(views: Sequence[ItemViews]) -> tuple[float, float]:
    """Inches: clients side by side, two rows; a single one has its two views side by side."""
    return (10.4, 5.2) if len(views) == 1 else (10.4, 14.6 / len(views) + 1.9)


def _draw(figure: Figure, views: Sequence[ItemViews]) -> None:
    count = len(views)
    shape = (1, 2) if count == 1 else (2, count)
    grid = figure.subplots(*shape, squeeze=False).reshape(2, count)
    for column, one in zip(grid.T, views, strict=True):
        _panel(column[0], one, after=False)
        _panel(column[1], one, after=True)
        column[0].set_title(f"{one.client}: {one.trained} own items", fontsize=10.5)
        column[1].set_xlabel("\n".join(_words(one)), fontsize=9.2)
    for axes, name in zip(grid[:, 0], NAMES, strict=True):
        axes.set_ylabel(name, fontsize=11)
    handles, labels = grid[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, markerscale=2.5)


def _panel(axes: Axes, one: ItemViews, *, after: bool) -> None:
    own, before = np.array(one.own), np.array(one.before)
    places = np.array(one.after) if after else before
    if after:
        pairs = np.stack([before[own], places[own]])
        axes.plot(*pairs.transpose(2, 0, 1), color=OWN, linewidth=0.6, alpha=0.3, rasterized=True)
    for chosen, label, colour, size in (
        (~own, "other items", OTHERS, 5),
        (own, "items that the client trained", OWN, 9),
    ):
        x, y = places[chosen].T
        axes.scatter(x, y, size, color=colour, linewidths=0, label=label, rasterized=True)
    _frame(axes, np.concatenate([before, np.array(one.after)]))


def _frame(axes: Axes, points: np.ndarray) -> None:
    """Room for both views, the same in both panels; the axes have no unit that says anything."""
    low, high = points.min(0), points.max(0)
    half = max(float((high - low).max()) / 2, 1e-9) * 1.05
    middle = (low + high) / 2
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
    axes.set_aspect("equal")
    axes.set(xticks=[], yticks=[])
    axes.axhline(0.0, color=GREY, linewidth=0.5, alpha=0.4, zorder=0)
    axes.axvline(0.0, color=GREY, linewidth=0.5, alpha=0.4, zorder=0)
