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


def colour(method_name: str, record: RunRecord) -> str:
    """The colour of a method, the same in all plots and in the table."""
    other_algorithms = [
        other_name for other_name in algorithms(record) if other_name not in COLOURS
    ]
    if method_name in COLOURS:
        return COLOURS[method_name]
    if method_name in other_algorithms:
        return OTHER_COLOURS[other_algorithms.index(method_name) % len(OTHER_COLOURS)]
    return GREY


def line_style(method_name: str, record: RunRecord) -> dict[str, Any]:
    """How the line of a method is drawn; the main one is thicker and on top."""
    is_main = method_name == main_algorithm(record)
    return {
        "label": method_name,
        "color": colour(method_name, record),
        "linewidth": 2.6 if is_main else 1.7,
        "marker": MARKERS.get(method_name, "v"),
        "markersize": 5.5 if is_main else 4.5,
        "zorder": 4 if is_main else 3,
    }


def marker_step(rounds: Sequence[int]) -> int:
    """Every so many points get a marker, at most about thirty."""
    return max(1, len(rounds) // 30)


def from_zero(axes: Axes) -> None:
    """The y axis from 0 to a little above the highest point."""
    line_values = np.concatenate(
        [np.ravel(plot_line.get_ydata()) for plot_line in axes.lines]
    ).astype(float)
    axes.set_ylim(0.0, 1.07 * float(np.nanmax(line_values, initial=0.0)) or 1.0)


def whole_numbers() -> MaxNLocator:
    """Ticks at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def legend_beside(axes: Axes) -> None:
    """A legend to the right of the axes."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)


def short_name(tensor_name: str) -> str:
    """A tensor name without the parts that all have; the empty one is that of all tensors."""
    if not tensor_name:
        return "whole encoder"
    name_parts = [
        name_part
        for name_part in tensor_name.split(".")
        if name_part not in ("encoder", "layers", "mixer", "weight")
    ]
    return " ".join(name_parts).replace("feed_forward", "ff")


def svg(draw: Callable[[Axes], None], figure_name: str, figure_inches: tuple[float, float]) -> str:
    """Draws into fresh axes and returns an ``<svg>`` element that scales with the page."""
    return figure_svg(lambda figure: draw(figure.subplots()), figure_name, figure_inches)


def figure_svg(
    draw: Callable[[Figure], None], figure_name: str, figure_inches: tuple[float, float]
) -> str:
    """As :func:`svg`, of a figure with as many axes as ``draw`` makes."""
    text_buffer = StringIO()
    _save(draw, text_buffer, "svg", figure_name, figure_inches)
    svg_text = text_buffer.getvalue()
    return svg_text[svg_text.index("<svg") :]


def save_figure(
    draw: Callable[[Figure], None], file_path: Path, figure_inches: tuple[float, float]
) -> None:
    """The same as a file on white; its ending says which kind: .png, .svg or .pdf."""
    file_kind = file_path.suffix.removeprefix(".").lower()
    bytes_buffer = BytesIO()
    _save(draw, bytes_buffer, file_kind, file_path.stem, figure_inches, facecolor="white")
    file_path.write_bytes(bytes_buffer.getvalue())


def _save(
    draw: Callable[[Figure], None],
    output_file: IO[Any],
    file_kind: str,
    figure_name: str,
    figure_inches: tuple[float, float],
    **more_options: Any,
) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # The salt makes ids unique among the plots of a page, and the bytes of a run reproducible.
    figure_style: Any = {**STYLE, "svg.hashsalt": figure_name}
    date_metadata: Any = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(file_kind)
    save_options = more_options or {"transparent": True}
    with mpl.rc_context(figure_style):
        figure = Figure(figsize=figure_inches, layout="constrained")
        draw(figure)
        figure.savefig(
            output_file, format=file_kind, metadata=date_metadata, dpi=DPI, **save_options
        )
