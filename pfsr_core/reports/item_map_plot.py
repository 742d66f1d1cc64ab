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


def item_map_svg(item_maps: Sequence[ItemMap]) -> str:
    """The picture as ``<svg>``, one column a client; "" without any."""
    if not item_maps:
        return ""
    return figure_svg(lambda figure: _draw(figure, item_maps), "item-map", _size(item_maps))


def save_item_map(item_maps: Sequence[ItemMap], picture_path: Path) -> None:
    """Writes the picture to a file.

    Raises:
        ItemMapError: ``picture_path`` ends with none of KINDS.
    """
    if picture_path.suffix.lower() not in KINDS:
        raise ItemMapError(f"{picture_path}: no picture. Fix: give it one of {', '.join(KINDS)}.")
    save_figure(lambda figure: _draw(figure, item_maps), picture_path, _size(item_maps))


def item_map_text(item_maps: Sequence[ItemMap]) -> str:
    """The figures of the picture, one line per client."""
    return "\n".join(
        f"{client_map.client}: {', '.join(_distance_texts(client_map))}" for client_map in item_maps
    )


def _distance_texts(client_map: ItemMap) -> tuple[str, str]:
    moved_text = f"own items moved {client_map.moved_own:.0%}, others {client_map.moved_others:.1%}"
    chance_text = f"{client_map.near_by_chance:.0%} by chance"
    return (
        moved_text,
        f"near: {client_map.near_before:.0%} before, {client_map.near_after:.0%} after, "
        f"{chance_text}",
    )


def _size(item_maps: Sequence[ItemMap]) -> tuple[float, float]:
    """Inches: clients side by side, two rows; a single one has both panels side by side."""
    return (10.4, 5.2) if len(item_maps) == 1 else (10.4, 14.6 / len(item_maps) + 1.9)


def _draw(figure: Figure, item_maps: Sequence[ItemMap]) -> None:
    num_clients = len(item_maps)
    grid_shape = (1, 2) if num_clients == 1 else (2, num_clients)
    axes_grid = figure.subplots(*grid_shape, squeeze=False).reshape(2, num_clients)
    for axes_column, client_map in zip(axes_grid.T, item_maps, strict=True):
        _panel(axes_column[0], client_map, after=False)
        _panel(axes_column[1], client_map, after=True)
        axes_column[0].set_title(
            f"{client_map.client}: {client_map.trained} own items", fontsize=10.5
        )
        axes_column[1].set_xlabel("\n".join(_distance_texts(client_map)), fontsize=9.2)
    for axes, row_title in zip(axes_grid[:, 0], ROW_TITLES, strict=True):
        axes.set_ylabel(row_title, fontsize=11)
    handles, labels = axes_grid[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, markerscale=2.5)


def _panel(axes: Axes, client_map: ItemMap, *, after: bool) -> None:
    own_mask, global_points = np.array(client_map.own), np.array(client_map.before)
    shown_points = np.array(client_map.after) if after else global_points
    if after:
        point_pairs = np.stack([global_points[own_mask], shown_points[own_mask]])
        axes.plot(
            *point_pairs.transpose(2, 0, 1), color=OWN, linewidth=0.6, alpha=0.3, rasterized=True
        )
    for item_mask, label, colour, marker_size in (
        (~own_mask, "other items", OTHERS, 5),
        (own_mask, "items that the client trained", OWN, 9),
    ):
        x, y = shown_points[item_mask].T
        axes.scatter(x, y, marker_size, color=colour, linewidths=0, label=label, rasterized=True)
    _frame(axes, np.concatenate([global_points, np.array(client_map.after)]))


def _frame(axes: Axes, all_points: np.ndarray) -> None:
    """The same limits in both panels, with room for both; the axes have no unit to show."""
    low, high = all_points.min(0), all_points.max(0)
    half_width = max(float((high - low).max()) / 2, 1e-9) * 1.05
    middle = (low + high) / 2
    axes.set(
        xlim=(middle[0] - half_width, middle[0] + half_width),
        ylim=(middle[1] - half_width, middle[1] + half_width),
    )
    axes.set_aspect("equal")
    axes.set(xticks=[], yticks=[])
    axes.axhline(0.0, color=GREY, linewidth=0.5, alpha=0.4, zorder=0)
    axes.axvline(0.0, color=GREY, linewidth=0.5, alpha=0.4, zorder=0)
