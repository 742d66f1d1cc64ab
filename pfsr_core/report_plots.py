"""The plots of a report: each takes a run and returns SVG, or "" when there is nothing to show.

matplotlib is imported when the first plot is drawn, never before. Colours are those of Okabe and
Ito (2008), which colour-blind readers can tell apart; baselines are grey and told by their dashes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import StringIO
from itertools import accumulate, cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from pfsr_core.run_files import SELECTED_BY, RunRecord, best_line, methods
from pfsr_core.run_views import (
    ALONE,
    Pairs,
    algorithms,
    curve,
    kept_of,
    main_algorithm,
)
from pfsr_core.run_views import pairs as client_pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

COLOURS = {
    "pfsr": "#0072B2",
    "fed-avg": "#D55E00",
    "fed-prox": "#CC79A7",
    "local-only": "#009E73",
}
OTHER_COLOURS = ("#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
MARKERS = {"pfsr": "o", "fed-avg": "s", "fed-prox": "D", "local-only": "^"}
DASHES = ((0, (6, 2)), (0, (2, 2)), (0, (6, 2, 1, 2)), (0, (1, 1)))
GREY = "#6b7280"
FEW_CLIENTS = 40  # more of them are drawn as a curve over ranks
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": "#374151",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "legend.frameon": False,
    "svg.fonttype": "path",
}


def convergence(record: RunRecord) -> str:
    """Validation NDCG@10 by round, one line a method; baselines as horizontal lines."""
    curves = {name: curve(record.of(name)) for name in algorithms(record)}
    curves = {name: found for name, found in curves.items() if found[0]}
    if not curves:
        return ""

    def draw(axes: Axes) -> None:
        for name, (rounds, values) in curves.items():
            axes.plot(rounds, values, **_line(name, record), markevery=_every(rounds))
            _circle_best(axes, name, record)
        _baselines(axes, record)
        axes.set(xlabel="round", ylabel="validation NDCG@10")
        _from_zero(axes)
        axes.xaxis.set_major_locator(_whole_numbers())
        _legend(axes)

    return _svg(draw, "convergence", (10.4, 4.6))


def client_distribution(record: RunRecord) -> str:
    """Test NDCG@10 of every client, the main method against the one that trains alone."""
    pairs = client_pairs(record)
    if not pairs:
        return ""
    draw = _dots if len(pairs) <= FEW_CLIENTS else _ranked
    return _svg(lambda axes: draw(axes, pairs, record), "clients", (10.4, 4.4))


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
            axes.plot(*zip(*points, strict=True), **_line(name, record))
        _silent(axes, record)
        axes.set(xlabel="MB sent in both directions", ylabel="validation NDCG@10")
        axes.set_xlim(left=0)
        _from_zero(axes)
        axes.legend(loc="lower right")

    return _svg(draw, "traffic", (5.6, 4.0))


def losses(record: RunRecord) -> str:
    """Training loss by round: the mean cross-entropy of the clients' training targets."""
    curves = {}
    for name in algorithms(record):
        told = [line for line in record.of(name) if line.get("train-loss") is not None]
        if told:
            curves[name] = ([line["round"] for line in told], [line["train-loss"] for line in told])
    if not curves:
        return ""

    def draw(axes: Axes) -> None:
        for name, (rounds, values) in curves.items():
            axes.plot(rounds, values, **_line(name, record), markevery=_every(rounds))
        axes.set(xlabel="round", ylabel="training loss")
        axes.xaxis.set_major_locator(_whole_numbers())
        axes.legend(loc="upper right")

    return _svg(draw, "losses", (5.6, 4.0))


def kept_shares(record: RunRecord) -> str:
    """Share of each tensor that stays on the clients, by round."""
    lines = [line for line in record.of(main_algorithm(record)) if kept_of(line)]
    if not lines:
        return ""
    names = sorted(kept_of(lines[-1]))
    values = np.array([[kept_of(line).get(name, np.nan) for name in names] for line in lines])
    rounds = [line["round"] for line in lines]

    def draw(axes: Axes) -> None:
        edges = np.array([*rounds, rounds[-1] + 1]) - 0.5
        places = np.arange(len(names) + 1)
        top = max(0.01, float(np.nanmax(values)))
        image = axes.pcolormesh(places, edges, values, cmap="Blues", vmin=0.0, vmax=top)
        labels = [_short(name) for name in names]
        axes.set_xticks(places[:-1] + 0.5, labels, rotation=90, fontsize=8.5)
        axes.yaxis.set_major_locator(_whole_numbers())
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.set_ylabel("round")
        bar = axes.figure.colorbar(image, ax=axes, format=lambda x, _: f"{x:.0%}", pad=0.01)
        bar.outline.set_visible(False)

    return _svg(draw, "kept", (10.4, 2.8 + min(3.0, 0.09 * len(rounds))))


def colour(name: str, record: RunRecord) -> str:
    """The colour of a method, the same in all plots and in the table."""
    others = [other for other in algorithms(record) if other not in COLOURS]
    if name in COLOURS:
        return COLOURS[name]
    if name in others:
        return OTHER_COLOURS[others.index(name) % len(OTHER_COLOURS)]
    return GREY


def _line(name: str, record: RunRecord) -> dict[str, Any]:
    main = name == main_algorithm(record)
    return {
        "label": name,
        "color": colour(name, record),
        "linewidth": 2.6 if main else 1.7,
        "marker": MARKERS.get(name, "v"),
        "markersize": 5.5 if main else 4.5,
        "zorder": 4 if main else 3,
    }


def _every(rounds: Sequence[int]) -> int:
    return max(1, len(rounds) // 30)


def _circle_best(axes: Axes, name: str, record: RunRecord) -> None:
    best = best_line(record.of(name))
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


def _silent(axes: Axes, record: RunRecord) -> None:
    """Methods that send nothing, as the line they can be compared with."""
    for name in algorithms(record):
        lines = record.of(name)
        values = curve(lines)[1]
        if values and not any(line.get("bytes-up", 0) for line in lines):
            label = f"{name} (sends nothing)"
            axes.axhline(
                max(values), color=colour(name, record), linestyle=(0, (4, 2)), label=label
            )


def _from_zero(axes: Axes) -> None:
    """The y axis from 0 to a little above the highest point."""
    values = np.concatenate([np.ravel(line.get_ydata()) for line in axes.lines]).astype(float)
    axes.set_ylim(0.0, 1.07 * float(np.nanmax(values, initial=0.0)) or 1.0)


def _whole_numbers() -> MaxNLocator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def _legend(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)


def _short(name: str) -> str:
    """Tensor names without what they all have; the empty one is the share of the whole encoder."""
    if not name:
        return "whole encoder"
    parts = [p for p in name.split(".") if p not in ("encoder", "layers", "mixer", "weight")]
    return " ".join(parts).replace("feed_forward", "ff")


def _dots(axes: Axes, pairs: Pairs, record: RunRecord) -> None:
    main = main_algorithm(record)
    places = np.arange(len(pairs))
    values = np.array([row.ndcg / row.users for row, _ in pairs])
    others = np.array([other.ndcg / other.users if other else np.nan for _, other in pairs])
    better = values >= others
    lines = [colour(main, record) if up else colour(ALONE, record) for up in better]
    axes.vlines(places, others, values, color=lines, linewidth=2.2, alpha=0.45)
    if not np.isnan(others).all():
        axes.plot(places, others, "^", color=colour(ALONE, record), markersize=7, label=ALONE)
    axes.plot(
        places, values, "o", color=colour(main, record), markersize=8, label=main, clip_on=False
    )
    names = [f"{row.client}\n{row.users:.0f} users" for row, _ in pairs]
    many = len(pairs) > 12
    axes.set_xticks(places, names, fontsize=8, rotation=90 if many else 0)
    axes.set(ylabel="test NDCG@10", xlim=(-0.6, len(pairs) - 0.4))
    _from_zero(axes)
    axes.grid(visible=False, axis="x")
    _legend(axes)


def _ranked(axes: Axes, pairs: Pairs, record: RunRecord) -> None:
    curves = {main_algorithm(record): [row for row, _ in pairs]}
    curves[ALONE] = [other for _, other in pairs if other]
    for name, rows in curves.items():
        values = np.sort([row.ndcg / row.users for row in rows])
        if len(values):
            where = np.linspace(0, 100, len(values))
            axes.plot(where, values, color=colour(name, record), linewidth=2.4, label=name)
    axes.set(xlabel="percent of the clients, each curve sorted", ylabel="test NDCG@10")
    axes.set_xlim(0, 100)
    _from_zero(axes)
    _legend(axes)


def _svg(draw: Callable[[Axes], None], name: str, inches: tuple[float, float]) -> str:
    """Draws into fresh axes and returns an ``<svg>`` element that scales with the page."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    output = StringIO()
    # The salt keeps the ids of two plots in one page apart, and the same run the same bytes.
    style: Any = {**STYLE, "svg.hashsalt": name}
    with mpl.rc_context(style):
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure.subplots())
        figure.savefig(output, format="svg", transparent=True, metadata={"Date": None})
    text = output.getvalue()
    return text[text.index("<svg") :]
