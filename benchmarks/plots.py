"""Cost against size, ours and peers' on the same axes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfsr_core.reports.style import OTHER_COLOURS, legend_beside, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Line = Mapping[str, Any]
Series = dict[str, list[tuple[float, float]]]

AXES = {
    "scan": "length of the sequences",
    "encoder": "length of the sequences (4,000 tokens in all)",
    "serve": "interactions before",
    "history": "interactions before",
    "round": "clients",
    "scale": "clients in the population",
}
OURS = "#0072B2"
VARIANTS = ("kernel", "plain", "batched", "loop", "tokens", "state")


def draw_all(lines: Sequence[Line], directory: Path) -> dict[str, list[str]]:
    """One SVG for each benchmark whose lines have sizes: benchmark to file names."""
    made: dict[str, list[str]] = {}
    for benchmark, label in AXES.items():
        series = series_of([line for line in lines if line["benchmark"] == benchmark])
        if any(len(points) > 1 for points in series.values()):
            directory.mkdir(parents=True, exist_ok=True)
            _draw(series, label, directory / f"{benchmark}.svg")
            made[benchmark] = [f"{directory.name}/{benchmark}.svg"]
    return made


def series_of(lines: Sequence[Line]) -> Series:
    """Curves (size, milliseconds): ours by variant, the first words of a case, and each peer's.

    A peer that was timed beside several variants is drawn once, by the mean of its times.
    """
    times: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        size = line.get("size")
        if size is None:
            continue
        for name, cost in ((_ours(line), line["ours_ms"]), (line["peer"], line["peer_ms"])):
            if cost is not None:
                times[name][size].append(cost)
    return {
        name: sorted((size, sum(costs) / len(costs)) for size, costs in points.items())
        for name, points in times.items()
    }


def _ours(line: Line) -> str:
    first = str(line["case"]).split(",")[0]
    return f"ours, {first}" if first in VARIANTS else "ours"


def _decades(costs: Iterable[float]) -> tuple[float, float]:
    """Whole powers of ten around all costs, so that noise does not fill a picture."""
    logs = [math.log10(cost) for cost in costs]
    return 10.0 ** math.floor(min(logs)), 10.0 ** max(
        math.ceil(max(logs)), math.floor(min(logs)) + 1
    )


def _draw(series: Series, label: str, path: Path) -> None:
    peers = [name for name in series if not name.startswith("ours")]

    def draw(axes: Axes) -> None:
        for name, points in series.items():
            ours = not peers.count(name)
            colour = OURS if ours else OTHER_COLOURS[peers.index(name) % len(OTHER_COLOURS)]
            dashes = "--" if name.endswith(("plain", "loop", "state")) else "-"
            axes.plot(*zip(*points, strict=True), dashes, marker="o", color=colour, label=name)
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="milliseconds")
        axes.set_ylim(*_decades(cost for points in series.values() for _, cost in points))
        ticks = sorted({size for points in series.values() for size, _ in points})
        axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        axes.minorticks_off()
        legend_beside(axes)

    picture = svg(draw, path.stem, (8.6, 4.2))
    path.write_text(picture.replace("<svg ", '<svg style="background: white" ', 1) + "\n")
