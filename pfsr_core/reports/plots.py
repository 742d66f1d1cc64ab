"""The plots of a report: each takes a run and returns SVG, or "" when there is nothing to show.

Baselines are grey and differ in their dashes.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    """Validation NDCG@10 by round, one line per method; baselines as horizontal lines."""
    method_curves = {
        method_name: curve(record.of(method_name)) for method_name in algorithms(record)
    }
    method_curves = {
        method_name: curve_points
        for method_name, curve_points in method_curves.items()
        if curve_points[0]
    }
    if not method_curves:
        return ""

    def draw(axes: Axes) -> None:
        _draw_curves(axes, method_curves, record)
        for method_name in method_curves:
            _circle_best(axes, method_name, record)
        _baselines(axes, record)
        axes.set(xlabel="round", ylabel="validation NDCG@10")
        from_zero(axes)
        axes.xaxis.set_major_locator(whole_numbers())
        legend_beside(axes)

    return svg(draw, "convergence", (10.4, 4.6))


def _draw_curves(
    axes: Axes, method_curves: Mapping[str, tuple[list[int], list[float]]], record: RunRecord
) -> None:
    """A line per method: its rounds and its values."""
    for method_name, (rounds, curve_values) in method_curves.items():
        axes.plot(
            rounds, curve_values, **line_style(method_name, record), markevery=marker_step(rounds)
        )


def client_distribution(record: RunRecord) -> str:
    """Test NDCG@10 of every client, the main method against the one that trains alone."""
    outcome_pairs = client_pairs(record)
    if not outcome_pairs:
        return ""
    draw_pairs = _dots if len(outcome_pairs) <= FEW_CLIENTS else _ranked
    return svg(lambda axes: draw_pairs(axes, outcome_pairs, record), "clients", (10.4, 4.4))


def traffic(record: RunRecord) -> str:
    """Validation NDCG@10 against the bytes sent so far in both directions."""
    method_curves = {}
    for method_name in algorithms(record):
        round_lines = record.of(method_name)
        bytes_sent = accumulate(
            round_line.get("bytes-down", 0) + round_line.get("bytes-up", 0)
            for round_line in round_lines
        )
        curve_points = [
            (total_bytes / 1e6, float(round_line[SELECTED_BY]))
            for total_bytes, round_line in zip(bytes_sent, round_lines, strict=True)
            if total_bytes and SELECTED_BY in round_line
        ]
        if curve_points:
            method_curves[method_name] = curve_points
    if not method_curves:
        return ""

    def draw(axes: Axes) -> None:
        for method_name, curve_points in method_curves.items():
            axes.plot(*zip(*curve_points, strict=True), **line_style(method_name, record))
        _methods_without_traffic(axes, record)
        axes.set(xlabel="MB sent in both directions", ylabel="validation NDCG@10")
        axes.set_xlim(left=0)
        from_zero(axes)
        axes.legend(loc="lower right")

    return svg(draw, "traffic", (5.6, 4.0))


def losses(record: RunRecord) -> str:
    """Training loss by round: the mean cross-entropy of the clients' training targets."""
    method_curves = {}
    for method_name in algorithms(record):
        with_loss = [
            round_line
            for round_line in record.of(method_name)
            if round_line.get("train-loss") is not None
        ]
        if with_loss:
            method_curves[method_name] = (
                [round_line["round"] for round_line in with_loss],
                [round_line["train-loss"] for round_line in with_loss],
            )
    if not method_curves:
        return ""

    def draw(axes: Axes) -> None:
        _draw_curves(axes, method_curves, record)
        axes.set(xlabel="round", ylabel="training loss")
        axes.xaxis.set_major_locator(whole_numbers())
        axes.legend(loc="upper right")

    return svg(draw, "losses", (5.6, 4.0))


def mask_ratio_map(record: RunRecord) -> str:
    """Share of each tensor that the mask keeps on the clients, by round."""
    round_lines = [
        round_line for round_line in record.of(main_algorithm(record)) if mask_ratios(round_line)
    ]
    if not round_lines:
        return ""
    tensor_names = sorted(mask_ratios(round_lines[-1]))
    ratio_values = np.array(
        [
            [mask_ratios(round_line).get(tensor_name, np.nan) for tensor_name in tensor_names]
            for round_line in round_lines
        ]
    )
    rounds = [round_line["round"] for round_line in round_lines]

    def draw(axes: Axes) -> None:
        round_edges = np.array([*rounds, rounds[-1] + 1]) - 0.5
        tensor_positions = np.arange(len(tensor_names) + 1)
        highest_ratio = max(0.01, float(np.nanmax(ratio_values)))
        image = axes.pcolormesh(
            tensor_positions, round_edges, ratio_values, cmap="Blues", vmin=0.0, vmax=highest_ratio
        )
        tick_labels = [short_name(tensor_name) for tensor_name in tensor_names]
        axes.set_xticks(tensor_positions[:-1] + 0.5, tick_labels, rotation=90, fontsize=8.5)
        axes.yaxis.set_major_locator(whole_numbers())
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.set_ylabel("round")
        colour_bar = axes.figure.colorbar(image, ax=axes, format=lambda x, _: f"{x:.0%}", pad=0.01)
        colour_bar.outline.set_visible(False)

    return svg(draw, "mask-ratio", (10.4, 2.8 + min(3.0, 0.09 * len(rounds))))


def _circle_best(axes: Axes, method_name: str, record: RunRecord) -> None:
    best_round = best_line(record.of(method_name), record.selected_by)
    if best_round is None:
        return
    axes.plot(
        best_round["round"],
        best_round[SELECTED_BY],
        marker="o",
        markersize=12,
        markerfacecolor="none",
        markeredgecolor=colour(method_name, record),
        markeredgewidth=1.6,
        zorder=5,
    )


def _baselines(axes: Axes, record: RunRecord) -> None:
    dash_styles = cycle(DASHES)
    for method_row in methods(record):
        metric_value = method_row.metrics.get(SELECTED_BY)
        if method_row.kind == "baseline" and metric_value is not None:
            axes.axhline(
                metric_value,
                color=GREY,
                linewidth=1.2,
                linestyle=next(dash_styles),
                label=method_row.name,
            )


def _methods_without_traffic(axes: Axes, record: RunRecord) -> None:
    """Methods that send nothing, as a horizontal line."""
    for method_name in algorithms(record):
        round_lines = record.of(method_name)
        curve_values = curve(round_lines)[1]
        if curve_values and not any(round_line.get("bytes-up", 0) for round_line in round_lines):
            line_label = f"{method_name} (sends nothing)"
            axes.axhline(
                max(curve_values),
                color=colour(method_name, record),
                linestyle=(0, (4, 2)),
                label=line_label,
            )


def _dots(axes: Axes, outcome_pairs: Pairs, record: RunRecord) -> None:
    main_method = main_algorithm(record)
    client_positions = np.arange(len(outcome_pairs))
    main_values = np.array([main_result.mean(SELECTION_METRIC) for main_result, _ in outcome_pairs])
    alone_values = np.array(
        [
            alone_result.mean(SELECTION_METRIC) if alone_result else np.nan
            for _, alone_result in outcome_pairs
        ]
    )
    is_ahead = main_values >= alone_values
    line_colours = [colour(main_method, record) if up else colour(ALONE, record) for up in is_ahead]
    axes.vlines(
        client_positions, alone_values, main_values, color=line_colours, linewidth=2.2, alpha=0.45
    )
    if not np.isnan(alone_values).all():
        axes.plot(
            client_positions,
            alone_values,
            "^",
            color=colour(ALONE, record),
            markersize=7,
            label=ALONE,
        )
    axes.plot(
        client_positions,
        main_values,
        "o",
        color=colour(main_method, record),
        markersize=8,
        label=main_method,
        clip_on=False,
    )
    tick_labels = [
        f"{main_result.client}\n{main_result.users:.0f} users" for main_result, _ in outcome_pairs
    ]
    are_many = len(outcome_pairs) > 12
    axes.set_xticks(client_positions, tick_labels, fontsize=8, rotation=90 if are_many else 0)
    axes.set(ylabel="test NDCG@10", xlim=(-0.6, len(outcome_pairs) - 0.4))
    from_zero(axes)
    axes.grid(visible=False, axis="x")
    legend_beside(axes)


def _ranked(axes: Axes, outcome_pairs: Pairs, record: RunRecord) -> None:
    method_curves = {main_algorithm(record): [row for row, _ in outcome_pairs]}
    method_curves[ALONE] = [other for _, other in outcome_pairs if other]
    for method_name, client_results in method_curves.items():
        sorted_values = np.sort([row.mean(SELECTION_METRIC) for row in client_results])
        if len(sorted_values):
            client_percents = np.linspace(0, 100, len(sorted_values))
            axes.plot(
                client_percents,
                sorted_values,
                color=colour(method_name, record),
                linewidth=2.4,
                label=method_name,
            )
    axes.set(xlabel="percent of the clients, each curve sorted", ylabel="test NDCG@10")
    axes.set_xlim(0, 100)
    from_zero(axes)
    legend_beside(axes)
