r"""Accuracy against what the server sees, by item mode: one picture out of records.

    python -m experiments.leakage.attack --clients 30 --seeds 0 1 2 \
        --out experiments/records/leakage.jsonl
    python -m experiments.run --arms "fed-avg, semantic items, clients of 1" ...
    python -m experiments.leakage.plot

Up: test NDCG@10 of FedAvg with one user per client, from the ablation's records. Across: the share
of a user's history that the best of several rankings finds in the user's first upload. A point is a
mean over seeds, its bars one standard error; a mode without records of both is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.arms.items import ID_DIMS, PRIVATE, id_arm, item_arm
from experiments.records import RECORDS, RecordStore
from experiments.tables.comparison import Records, load_records
from pfsr_core.reports.style import COLOURS, GREY, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = Mapping[str, Any]

NDCG = "seen-filtered/ndcg@10"
LEAKAGE = RECORDS / "leakage.jsonl"
PICTURE = Path("docs/results/accuracy-against-leak.svg")
REFERENCES = {
    "central item-knn": "item-kNN, all data",
    "central popularity": "popularity, all data",
}


@dataclass(frozen=True)
class Mode:
    """An item mode in the picture.

    Attributes:
        label: Text beside its point.
        attacked: Its name in the records of the attack; "" where nothing of items is sent and a
            guess is all that a server has.
        arm: Its arm of the ablation.
        offset: Of the label from the point, in typographic points.
    """

    label: str
    attacked: str
    arm: str
    offset: tuple[int, int] = (-9, 6)


@dataclass(frozen=True)
class Point:
    """Means over seeds and their standard errors (0 of a single seed); ``leak`` is x."""

    mode: Mode
    leak: float
    leak_error: float
    accuracy: float
    accuracy_error: float


def _semantic(dim: int, arm: str, attacked: str = "") -> Mode:
    return Mode(f"semantic, id-dim {dim}", attacked or f"semantic, {dim} numbers of the id", arm)


SEMANTIC = (
    _semantic(960, item_arm("fed-avg", "semantic", 1)),
    *(_semantic(dim, id_arm(dim)) for dim in ID_DIMS if dim),
    _semantic(0, id_arm(0), "semantic, words alone"),
)
MODES = (
    *SEMANTIC,
    Mode("shared", "shared", item_arm("fed-avg", "shared", 1), (-9, -16)),
    Mode("dual", "dual", item_arm("fed-avg", "dual", 1), (-9, -5)),
    Mode(
        "private: no item vector is sent,\nand no target can be ranked",
        "",
        item_arm("fed-avg", PRIVATE, 1),
        (9, 6),
    ),
)


def points(records: Records, lines: Sequence[Line]) -> list[Point]:
    """Of the modes that have records of both, in the order of MODES."""
    chance = [line["chance"] for line in lines]
    found = []
    for mode in MODES:
        leaks = [best_found(line) for line in lines if line["mode"] == mode.attacked]
        leaks = leaks if mode.attacked else chance
        if leaks and mode.arm in records:
            values = [record["test_means"][NDCG] for record in records[mode.arm].values()]
            found.append(Point(mode, *mean_and_error(leaks), *mean_and_error(values)))
    return found


def best_found(line: Line) -> float:
    """The share of a history that the best ranking finds."""
    return max(float(attack["found"]) for attack in line["attacks"].values())


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error, 0 of a single value."""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return float(np.mean(values)), float(error)


def draw(figure: Figure, records: Records, lines: Sequence[Line]) -> None:
    """The whole picture. Raises ValueError without a point to draw."""
    axes, found = figure.subplots(), points(records, lines)
    if not found:
        raise ValueError("no item mode has records of both. Fix: run the commands of this module.")
    _references(axes, records, float(np.mean([line["chance"] for line in lines])))
    curve = [point for point in found if point.mode in SEMANTIC]
    axes.plot(
        [p.leak for p in curve], [p.accuracy for p in curve], color=COLOURS["pfsr"], alpha=0.5
    )
    for point in found:
        _draw_point(axes, point)
    axes.set(
        xlabel="share of one user's history that the server finds in a single upload",
        ylabel="test NDCG@10, a user a client (FedAvg)",
        xlim=(0.0, 1.03),
        ylim=(-0.004, 1.15 * max(point.accuracy for point in found)),
    )
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")


def _draw_point(axes: Axes, point: Point) -> None:
    mode = point.mode
    colour = COLOURS["pfsr"] if mode in SEMANTIC else COLOURS["fed-avg"] if mode.attacked else GREY
    axes.errorbar(
        point.leak,
        point.accuracy,
        xerr=point.leak_error,
        yerr=point.accuracy_error,
        fmt="o",
        markersize=8,
        color=colour,
        capsize=3,
        clip_on=False,
    )
    axes.annotate(
        mode.label,
        (point.leak, point.accuracy),
        xytext=mode.offset,
        textcoords="offset points",
        ha="right" if mode.offset[0] < 0 else "left",
        color=colour,
    )


def _references(axes: Axes, records: Records, chance: float) -> None:
    """What a guess finds, and what needs no training but all data in one place."""
    axes.axvline(chance, color=GREY, linestyle=(0, (2, 2)), linewidth=1.2)
    axes.annotate(
        "chance",
        (chance, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(5, 0),
        textcoords="offset points",
        va="top",
        color=GREY,
    )
    for arm, label in REFERENCES.items():
        if arm in records:
            value, _ = mean_and_error([r["test_means"][NDCG] for r in records[arm].values()])
            axes.axhline(value, color=GREY, linestyle=(0, (6, 2)), linewidth=1.0)
            axes.annotate(
                label,
                (chance, value),
                xytext=(5, 4),
                textcoords="offset points",
                color=GREY,
                fontsize=9,
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command: draws the picture and prints its points."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--leak", type=Path, default=LEAKAGE, help="records of experiments.leakage.attack"
    )
    parser.add_argument("--records", type=Path, default=RECORDS, help="records of the ablation")
    parser.add_argument("--out", type=Path, default=PICTURE)
    options = parser.parse_args(argv)
    records = load_records(RecordStore(options.records))
    lines = [json.loads(line) for line in options.leak.read_text("utf-8").splitlines()]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_figure(lambda figure: draw(figure, records, lines), options.out, (8.6, 5.0))
    for point in points(records, lines):
        sys.stdout.write(_point_line(point) + "\n")
    return 0


def _point_line(point: Point) -> str:
    found = f"{point.leak:.3f} ± {point.leak_error:.3f}"
    accuracy = f"{point.accuracy:.4f} ± {point.accuracy_error:.4f}"
    return f"{point.mode.label.partition(':')[0]}: found {found}, NDCG@10 {accuracy}"


if __name__ == "__main__":
    sys.exit(main())
