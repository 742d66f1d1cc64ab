"""``docs/performance.jsonl`` and the page made of it: tables, and cost against size as plots."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plots import draw_all

Line = Mapping[str, Any]

TITLES = {
    "scan": "The scan alone, plain PyTorch, forward and backward",
    "encoder": "The whole block, a training step on 4,000 tokens",
    "serve": "One new interaction",
    "history": "One new interaction after a long history, with the catalogue's scores",
    "round": "Many clients on a node, one round of training",
    "scale": "Large populations",
}
NOTES = {
    "scan": "*Both directions*: the ratio is one direction's cost over that of both together; a "
    "target of 0.769 is at most 1.3 times one.",
    "encoder": "*Share of the matrix product rate*: a ratio above 1 says that the step is faster "
    "than its multiplications alone would be in torch's own products, which on some processors "
    "do not use the widest vectors. The exponent is that of a fit; there less is better.",
    "history": "*Reading all*: the same encoder over the whole history, with torch's fused "
    "attention, or in linear time; both are cheap enough that 100 times is much to ask at 2,000 "
    "items. *Without a memory*: the same answer with the old items compressed anew.",
    "round": "Batching takes the overhead of a client's step away, not its arithmetic: it gains "
    "most where a client is small. Both engines run as a node runs them, in one process.",
    "scale": "The peer is the same round in the smallest population; within 1.5 times it holds.",
}
HEADER = "| case | ours | peer | peer's | ratio | target | |\n|---|---|---|---|---|---|---|"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of an earlier run; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def merge(old: Iterable[Line], new: Sequence[Line]) -> list[Line]:
    """``new`` in place of the old lines of the same benchmarks, in the order of :data:`TITLES`."""
    fresh = {line["benchmark"] for line in new}
    lines = [line for line in old if line["benchmark"] not in fresh] + list(new)
    return sorted(lines, key=lambda line: list(TITLES).index(line["benchmark"]))


def write(lines: Sequence[Line], directory: Path) -> Path:
    """Writes ``performance.jsonl``, ``performance.md`` and ``performance/*.svg``; returns the page.

    The plots are drawn from the lines, so a page can be made again without measuring.
    """
    directory.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "performance.jsonl").write_text(text)
    plots = draw_all(lines, directory / "performance")
    page = directory / "performance.md"
    page.write_text(page_text(lines, plots))
    return page


def page_text(lines: Sequence[Line], plots: Mapping[str, Sequence[str]]) -> str:
    """The page in Markdown; ``plots``: file names by benchmark, relative to the page."""
    parts = [
        "# Performance",
        "Made by `make bench` (`python -m benchmarks`). Every figure is a median over repetitions, "
        "ours and the peer's in turn in one process; compare the ratios, the times belong to the "
        "machine. *ratio*: the peer's cost over ours; *target*: the least ratio wanted.",
        _facts(lines),
    ]
    for name, title in TITLES.items():
        chosen = [line for line in lines if line["benchmark"] == name]
        if chosen:
            parts += [f"## {title}", *filter(None, [NOTES.get(name)])]
            parts.append("\n".join([HEADER, *map(_row, chosen)]))
            parts += [f"![{title}]({plot})" for plot in plots.get(name, ())]
    return "\n\n".join(parts) + "\n"


def _facts(lines: Sequence[Line]) -> str:
    found = {
        (line.get("date"), f"commit {str(line.get('commit'))[:12]}", line.get("machine"))
        for line in lines
    }
    made = sorted("; ".join(str(fact) for fact in facts if fact) for facts in found)
    return "\n".join(f"* {line}" for line in made) + f"\n* Python {platform.python_version()}"


def _row(line: Line) -> str:
    target, holds = line["target"], line["holds"]
    cells = [
        line["case"] + (f", {line['threads']} threads" if line["threads"] != 1 else ""),
        _amount(line["ours_ms"], line.get("ours_mb")),
        line["peer"],
        _amount(line["peer_ms"], line.get("peer_mb")),
        _number(line["ratio"]),
        _number(target),
        {True: "holds", False: "**missed**", None: ""}[holds],
    ]
    return "| " + " | ".join(cells) + " |"


def _amount(milliseconds: float | None, megabytes: float | None) -> str:
    parts = []
    if milliseconds is not None:
        parts.append(_time(milliseconds))
    if megabytes is not None:
        parts.append(f"{megabytes:.0f} MB")
    return ", ".join(parts)


def _time(milliseconds: float) -> str:
    if milliseconds >= 10_000:
        return f"{milliseconds / 1000:.1f} s"
    return f"{milliseconds * 1000:.1f} us" if milliseconds < 0.1 else f"{milliseconds:.3g} ms"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
