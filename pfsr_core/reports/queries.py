"""Questions to a run that its table and its plots share."""

from __future__ import annotations

from collections.abc import Sequence

from pfsr_core.evaluation.metrics.registry import SELECTION_METRIC
from pfsr_core.items.text_vectors import CO_OCCURRENCE, COLLABORATIVE
from pfsr_core.runs.files import CENTRAL, SELECTED_BY, ClientResult, Json, RunRecord
from pfsr_core.runs.results import MASK_RATIO

MAIN = "pfsr"
ALONE = "local-only"
Pairs = Sequence[tuple[ClientResult, ClientResult | None]]


def algorithms(record: RunRecord) -> list[str]:
    """Names with rounds, the main one last, so that it is drawn on top."""
    names = list(dict.fromkeys(line["algorithm"] for line in record.rounds))
    main = main_algorithm(record)
    return [name for name in names if name != main] + [name for name in names if name == main]


def main_algorithm(record: RunRecord) -> str:
    """The algorithm that the settings name, else the first one that was run."""
    trained = [line["algorithm"] for line in record.rounds]
    if CENTRAL in trained:
        return CENTRAL
    named = record.config.get("algorithm.name")
    if named is None and isinstance(record.config.get("algorithm"), dict):
        named = record.config["algorithm"].get("name")
    return str(named or next(iter(trained), MAIN))


def mask_ratios(line: Json) -> dict[str, float]:
    """Shares that the mask holds back, by tensor name, out of one line of the metrics."""
    nested = line.get("mask-ratio")
    if isinstance(nested, dict):
        return nested
    return {k.removeprefix(MASK_RATIO): v for k, v in line.items() if k.startswith(MASK_RATIO)}


def ranked_among(record: RunRecord) -> str:
    """Which items a held-out one competes with."""
    own = record.config.get("federation.catalogues") == "own"
    return "the client's own catalogue" if own else "the whole catalogue"


def vectors_note(record: RunRecord) -> str:
    """What must be said of the item vectors of a run, if anything."""
    pooled = record.config.get("model.item-vectors") == CO_OCCURRENCE
    return f"{COLLABORATIVE}\n" if pooled else ""


def curve(lines: Sequence[Json]) -> tuple[list[int], list[float]]:
    """Rounds that were evaluated, and their validation NDCG@10."""
    measured = [line for line in lines if SELECTED_BY in line]
    return [line["round"] for line in measured], [float(line[SELECTED_BY]) for line in measured]


def pairs(record: RunRecord) -> Pairs:
    """Each client's outcome with the main method, the lowest first, and alone when known."""
    test = [row for row in record.clients if row.split == "test" and row.users]
    alone = {row.client: row for row in test if row.method == ALONE}
    main = [row for row in test if row.method == main_algorithm(record)]
    if main_algorithm(record) == ALONE:
        alone = {}
    return [
        (row, alone.get(row.client)) for row in sorted(main, key=lambda r: r.mean(SELECTION_METRIC))
    ]


def wins(record: RunRecord) -> tuple[int, int]:
    """On how many clients the main method is ahead of training alone, and how many have both."""
    both = [(row, other) for row, other in pairs(record) if other]
    return sum(
        row.sums[SELECTION_METRIC] > other.sums[SELECTION_METRIC] for row, other in both
    ), len(both)
