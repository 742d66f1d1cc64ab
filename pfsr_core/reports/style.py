"""How plots look: colours, lines, axes, and a figure as SVG.

Colours are those of Okabe and Ito (2008), chosen for colour-blind readers. matplotlib is
imported when the first plot is drawn, never before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from pfsr_core.reports.queries import algorithms, main_algorithm
from pfsr_core.runs.files import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

COLOURS = {
    "pfsr": "#0072B2",
    "fed-avg": "#D55E00",
    "fed-prox": "#CC79A7",
    "local-only": "#009E73",
}
OTHER_COLOURS = ("#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
MARKERS = {"pfsr": "o", "fed-avg": "s", "fed-prox": "D", "local-only": "^"}
GREY = "#6b7280"
DPI = 160  # of pictures in pixels, and of what is drawn as pixels within others
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


def colour(name: str, record: RunRecord) -> str:
    """The colour of a method, the same in all plots and in the table."""
    others = [other for other in algorithms(record) if other not in COLOURS]
    if name in COLOURS:
        return COLOURS[name]
    if name in others:
        return OTHER_COLOURS[others.index(name) % len(OTHER_COLOURS)]
    return GREY


def line_style(name: str, record: RunRecord) -> dict[str, Any]:
    """How the line of a method is drawn; the main one is thicker and on top."""
    main = name == main_algorithm(record)
    return {
        "label": name,
        "color": colour(name, record),
        "linewidth": 2.6 if main else 1.7,
        "marker": MARKERS.get(name, "v"),
        "markersize": 5.5 if main else 4.5,
        "zorder": 4 if main else 3,
    }


def marker_step(rounds: Sequence[int]) -> int:
    """Every so many points get a marker, at most about thirty."""
    return max(1, len(rounds) // 30)


def from_zero(axes: Axes) -> None:
    """The y axis from 0 to a little above the highest point."""
    values = np.concatenate([np.ravel(line.get_ydata()) for line in axes.lines]).astype(float)
    axes.set_ylim(0.0, 1.07 * float(np.nanmax(values, initial=0.0)) or 1.0)


def whole_numbers() -> MaxNLocator:
    """Ticks at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def legend_beside(axes: Axes) -> None:
    """A legend to the right of the axes."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)


def short_name(name: str) -> str:
    """A tensor name without the parts that all have; the empty one is that of all tensors."""
    if not name:
        return "whole encoder"
    parts = [p for p in name.split(".") if p not in ("encoder", "layers", "mixer", "weight")]
    return " ".join(parts).replace("feed_forward", "ff")


def svg(draw: Callable[[Axes], None], name: str, inches: tuple[float, float]) -> str:
    """Draws into fresh axes and returns an ``<svg>`` element that scales with the page."""
    return figure_svg(lambda figure: draw(figure.subplots()), name, inches)


def figure_svg(draw: Callable[[Figure], None], name: str, inches: tuple[float, float]) -> str:
    """As :func:`svg`, of a figure with as many axes as ``draw`` makes."""
    output = StringIO()
    _save(draw, output, "svg", name, inches)
    text = output.getvalue()
    return text[text.index("<svg") :]


def save_figure(draw: Callable[[Figure], None], path: Path, inches: tuple[float, float]) -> None:
    """The same as a file on white; its ending says which kind: .png, .svg or .pdf."""
    kind = path.suffix.removeprefix(".").lower()
    output = BytesIO()
    _save(draw, output, kind, path.stem, inches, facecolor="white")
    path.write_bytes(output.getvalue())


def _save(
    draw: Callable[[Figure], None],
    output: IO[Any],
    kind: str,
    name: str,
    inches: tuple[float, float],
    **more: Any,
) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # The salt makes ids unique among the plots of a page, and the bytes of a run reproducible.
    style: Any = {**STYLE, "svg.hashsalt": name}
    dates: Any = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    look = more or {"transparent": True}
    with mpl.rc_context(style):
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure)
        figure.savefig(output, format=kind, metadata=dates, dpi=DPI, **look)
