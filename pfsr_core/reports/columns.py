"""The columns of the final table, and how their values are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pfsr_core.evaluation.metrics.registry import (
    FILTERED,
    INCLUDED,
    SAMPLED,
    headline_metrics,
)
from pfsr_core.runs.files import Method

UNKNOWN = "–"
SEEN_INCLUDED = "w/ seen"  # in a heading that must be short
INCLUDED_GROUP = "seen items included"
SAMPLED_NOTE = (
    "sampled-99: ranked among 99 items that the user never touched, for comparison with published "
    "tables of federated recommenders only; it orders methods differently from full ranking"
)


@dataclass(frozen=True)
class Column:
    """A column of the final table.

    Attributes:
        title: Its heading.
        value: Its value of a method, None where it is not known.
        text: The value as text.
        best: Whether the highest value is marked.
        group: A heading over several columns; "" without one.
    """

    title: str
    value: Callable[[Method], float | None]
    text: Callable[[float], str]
    best: bool = False
    group: str = ""


def metric_columns(candidates: str, group: str, *, best: bool = True) -> tuple[Column, ...]:
    """One column for each headline metric on the test items among ``candidates``."""
    return tuple(
        Column(metric.title, _metric(f"test/{candidates}/{metric.name}"), share, best, group)
        for metric in headline_metrics()
    )


def table_columns() -> tuple[Column, ...]:
    """The columns of the final table."""
    return (
        *metric_columns(FILTERED, "seen items filtered"),
        *metric_columns(INCLUDED, INCLUDED_GROUP),
        Column("coverage", _metric("test/covered"), percent),
        Column("down", lambda method: method.bytes_down, size, group="bytes"),
        Column("up", lambda method: method.bytes_up, size, group="bytes"),
        Column("time", lambda method: method.seconds, duration),
    )


def sampled_columns() -> tuple[Column, ...]:
    """The columns of the table of methods among sampled items."""
    return metric_columns(SAMPLED, SAMPLED, best=False)


def sampled_rows(method_rows: Sequence[Method]) -> list[Method]:
    """Those that were ranked among sampled items too."""
    first_column = sampled_columns()[0]
    return [method_row for method_row in method_rows if first_column.value(method_row) is not None]


def cell(column: Column, method: Method) -> str:
    """The text of one cell."""
    cell_value = column.value(method)
    return UNKNOWN if cell_value is None else column.text(cell_value)


def best_value(column: Column, method_rows: Sequence[Method]) -> float | None:
    """The highest value of a column in which the best is marked."""
    column_values = [
        column_value
        for method_row in method_rows
        if (column_value := column.value(method_row)) is not None
    ]
    return max(column_values) if column.best and column_values else None


def share(value: float) -> str:
    """.169 for 0.1694, without the zero that says nothing."""
    return f"{value:.3f}".removeprefix("0")


def percent(value: float) -> str:
    """17% for 0.17."""
    return f"{value:.0%}"


def size(num_bytes: float) -> str:
    """Bytes with a decimal unit, 0 as a dash."""
    if not num_bytes:
        return UNKNOWN
    unit_power = min(3, int(math.log10(max(num_bytes, 1)) // 3))
    unit_amount = num_bytes / 1000**unit_power
    num_decimals = 0 if unit_power == 0 or unit_amount >= 100 else 1
    return f"{unit_amount:.{num_decimals}f} {('B', 'kB', 'MB', 'GB')[unit_power]}"


def duration(total_seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if total_seconds < 60:
        return f"{total_seconds:.1f} s"
    minutes, seconds = divmod(round(total_seconds), 60)
    if minutes < 10:
        return f"{minutes} min {seconds:02d} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _metric(metric_key: str) -> Callable[[Method], float | None]:
    return lambda method: method.metrics.get(metric_key)
