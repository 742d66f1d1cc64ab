"""The plots of a report: each takes a run and returns SVG, or "" when there is nothing to show.

Baselines are grey and differ in their dashes.
"""

from __future__ import annotations

from itertools import accumulate, cycle
from typing import TYPE_CHECKING

import numpy as np

from pfsr_core.evaluation.metrics.registry import SELECTION_METRIC
from pfsr_core.reports.queries import ALONE, Pairs, algorithms, curve, main_algorithm, mask_ratios
from pfsr_core.reports.queries import pairs as client_pairs
from pfsr_core.reports.style import (
    GREY,
    colour,
    from_zero,
    legend_beside,
    line_style,
    marker_step,
    short_name,
    svg,
    whole_numbers,
)
from pfsr_core.runs.files import SELECTED_BY, RunRecord, best_line, methods

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DASHES = (
    (0, (6, 2)),
    (0, (2, 2)),
    (0, (6, 2, 1, 2)),
    (0, (1, 1)),
    (0, (6, 2, 1, 2, 1, 2)),
)
FEW_CLIENTS = 40  # more of them are drawn as a curve over ranks


def convergence(record: RunRecord) -> str:
    """Validation NDCG@10 by round, one line a method; baselines as horizontal lines."""
    curves = {name: curve(record.of(name)) for name in algorithms(record)}
    curves = {name: points for name, points in curves.items() if points[0]}
    if not curves:
        return ""

    def draw(axes: Axes) -> None:
        for name, (rounds, values) in curves.items():
            axes.plot(rounds, values, **line_style(name, record), markevery=marker_step(rounds))
            _circle_best(axes, name, record)
        _baselines(axes, record)
        axes.set(xlabel="round", ylabel="validation NDCG@10")
        from_zero(axes)
        axes.xaxis.set_major_locator(whole_numbers())
        legend_beside(axes)

    return svg(draw, "convergence", (10.4, 4.6))


def client_distribution(record: RunRecord) -> str:
    """Test NDCG@10 of every client, the main method against the one that trains alone."""
    pairs = client_pairs(record)
    if not pairs:
        return ""
    draw = _dots if len(pairs) <= FEW_CLIENTS else _ranked
    return svg(lambda axes: draw(axes, pairs, record), "clients", (10.4, 4.4))


def traffic(record: RunRecord) -> str:
    """Validation NDCG@10 against the bytes sent so far in both directions."""
    curves = {}
    for name in algorithms(record):
        lines = record.of(name)
        sent = accumulate(line.get("bytes-down", 0) + line.get("bytes-up", 0) for line in lines)
        points = [
            (total / 1e6, float(line[SELECTED_BY]))
            for total, line in zip(sent, lines, strict=True)
            if total and SELECTED_BY in line
        ]
        if points:
            curves[name] = points
    if not curves:
        return ""

    def draw(axes: Axes) -> None:
        for name, points in curves.items():
            axes.plot(*zip(*points, strict=True), **line_style(name, record))
        _methods_without_traffic(axes, record)
        axes.set(xlabel="MB sent in both directions", ylabel="validation NDCG@10")
        axes.set_xlim(left=0)
        from_zero(axes)
        axes.legend(loc="lower right")

    return svg(draw, "traffic", (5.6, 4.0))


def losses(record: RunRecord) -> str:
    """Training loss by round: the mean cross-entropy of the clients' training targets."""
    curves = {}
    for name in algorithms(record):
        with_loss = [line for line in record.of(name) if line.get("train-loss") is not None]
        if with_loss:
            curves[name] = (
                [line["round"] for line in with_loss],
                [line["train-loss"] for line in with_loss],
            )
    if not curves:
        return ""

    def draw(axes: Axes) -> None:
        for name, (rounds, values) in curves.items():
            axes.plot(rounds, values, **line_style(name, record), markevery=marker_step(rounds))
        axes.set(xlabel="round", ylabel="training loss")
        axes.xaxis.set_major_locator(whole_numbers())
        axes.legend(loc="upper right")

    return svg(draw, "losses", (5.6, 4.0))


def mask_ratio_map(record: RunRecord) -> str:
    """Share of each tensor that the mask keeps on the clients, by round."""
    lines = [line for line in record.of(main_algorithm(record)) if mask_ratios(line)]
    if not lines:
        return ""
    names = sorted(mask_ratios(lines[-1]))
    values = np.array([[mask_ratios(line).get(name, np.nan) for name in names] for line in lines])
    rounds = [line["round"] for line in lines]

    def draw(axes: Axes) -> None:
        edges = np.array([*rounds, rounds[-1] + 1]) - 0.5
        positions = np.arange(len(names) + 1)
        top = max(0.01, float(np.nanmax(values)))
        image = axes.pcolormesh(positions, edges, values, cmap="Blues", vmin=0.0, vmax=top)
        labels = [short_name(name) for name in names]
        axes.set_xticks(positions[:-1] + 0.5, labels, rotation=90, fontsize=8.5)
        axes.yaxis.set_major_locator(whole_numbers())
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.set_ylabel("round")
        bar = axes.figure.colorbar(image, ax=axes, format=lambda x, _: f"{x:.0%}", pad=0.01)
        bar.outline.set_visible(False)

    return svg(draw, "mask-ratio", (10.4, 2.8 + min(3.0, 0.09 * len(rounds))))


def _circle_best(axes: Axes, name: str, record: RunRecord) -> None:
    best = best_line(record.of(name), record.selected_by)
    if best is None:
        return
    axes.plot(
        best["round"],
        best[SELECTED_BY],
        marker="o",
        markersize=12,
        markerfacecolor="none",
        markeredgecolor=colour(name, record),
        markeredgewidth=1.6,
        zorder=5,
    )


def _baselines(axes: Axes, record: RunRecord) -> None:
    dashes = cycle(DASHES)
    for row in methods(record):
        value = row.metrics.get(SELECTED_BY)
        if row.kind == "baseline" and value is not None:
            axes.axhline(value, color=GREY, linewidth=1.2, linestyle=next(dashes), label=row.name)


def _methods_without_traffic(axes: Axes, record: RunRecord) -> None:
    """Methods that send nothing, as a horizontal line."""
    for name in algorithms(record):
        lines = record.of(name)
        values = curve(lines)[1]
        if values and not any(line.get("bytes-up", 0) for line in lines):
            label = f"{name} (sends nothing)"
            axes.axhline(
                max(values), color=colour(name, record), linestyle=(0, (4, 2)), label=label
            )


def _dots(axes: Axes, pairs: Pairs, record: RunRecord) -> None:
    main = main_algorithm(record)
    positions = np.arange(len(pairs))
    values = np.array([row.mean(SELECTION_METRIC) for row, _ in pairs])
    others = np.array([other.mean(SELECTION_METRIC) if other else np.nan for _, other in pairs])
    ahead = values >= others
    lines = [colour(main, record) if up else colour(ALONE, record) for up in ahead]
    axes.vlines(positions, others, values, color=lines, linewidth=2.2, alpha=0.45)
    if not np.isnan(others).all():
        axes.plot(positions, others, "^", color=colour(ALONE, record), markersize=7, label=ALONE)
    axes.plot(
        positions, values, "o", color=colour(main, record), markersize=8, label=main, clip_on=False
    )
    names = [f"{row.client}\n{row.users:.0f} users" for row, _ in pairs]
    many = len(pairs) > 12
    axes.set_xticks(positions, names, fontsize=8, rotation=90 if many else 0)
    axes.set(ylabel="test NDCG@10", xlim=(-0.6, len(pairs) - 0.4))
    from_zero(axes)
    axes.grid(visible=False, axis="x")
    legend_beside(axes)


def _ranked(axes: Axes, pairs: Pairs, record: RunRecord) -> None:
    curves = {main_algorithm(record): [row for row, _ in pairs]}
    curves[ALONE] = [other for _, other in pairs if other]
    for name, rows in curves.items():
        values = np.sort([row.mean(SELECTION_METRIC) for row in rows])
        if len(values):
            where = np.linspace(0, 100, len(values))
            axes.plot(where, values, color=colour(name, record), linewidth=2.4, label=name)
    axes.set(xlabel="percent of the clients, each curve sorted", ylabel="test NDCG@10")
    axes.set_xlim(0, 100)
    from_zero(axes)
    legend_beside(axes)
