"""Values derived from a run, for its tables and plots."""

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
    algorithm_names = list(dict.fromkeys(round_line["algorithm"] for round_line in record.rounds))
    main_name = main_algorithm(record)
    return [algorithm_name for algorithm_name in algorithm_names if algorithm_name != main_name] + [
        algorithm_name for algorithm_name in algorithm_names if algorithm_name == main_name
    ]


def main_algorithm(record: RunRecord) -> str:
    """The algorithm that the settings name, else the first one that was run."""
    trained_algorithms = [round_line["algorithm"] for round_line in record.rounds]
    if CENTRAL in trained_algorithms:
        return CENTRAL
    named_algorithm = record.config.get("algorithm.name")
    if named_algorithm is None and isinstance(record.config.get("algorithm"), dict):
        named_algorithm = record.config["algorithm"].get("name")
    return str(named_algorithm or next(iter(trained_algorithms), MAIN))


def mask_ratios(round_line: Json) -> dict[str, float]:
    """Shares that the mask holds back, by tensor name, out of one line of the metrics."""
    nested_ratios = round_line.get("mask-ratio")
    if isinstance(nested_ratios, dict):
        return nested_ratios
    return {
        metric_key.removeprefix(MASK_RATIO): metric_value
        for metric_key, metric_value in round_line.items()
        if metric_key.startswith(MASK_RATIO)
    }


def candidate_description(record: RunRecord) -> str:
    """Which items a held-out one competes with."""
    own_catalogue = record.config.get("federation.catalogues") == "own"
    return "the client's own catalogue" if own_catalogue else "the whole catalogue"


def vectors_note(record: RunRecord) -> str:
    """What must be said of the item vectors of a run, if anything."""
    uses_co_occurrence = record.config.get("model.item-vectors") == CO_OCCURRENCE
    return f"{COLLABORATIVE}\n" if uses_co_occurrence else ""


def curve(round_lines: Sequence[Json]) -> tuple[list[int], list[float]]:
    """Rounds that were evaluated, and their validation NDCG@10."""
    evaluated_lines = [round_line for round_line in round_lines if SELECTED_BY in round_line]
    return [round_line["round"] for round_line in evaluated_lines], [
        float(round_line[SELECTED_BY]) for round_line in evaluated_lines
    ]


def pairs(record: RunRecord) -> Pairs:
    """Each client's outcome with the main method, the lowest first, and alone when known."""
    test_results = [
        client_result
        for client_result in record.clients
        if client_result.split == "test" and client_result.users
    ]
    alone_results = {
        client_result.client: client_result
        for client_result in test_results
        if client_result.method == ALONE
    }
    main_results = [
        client_result
        for client_result in test_results
        if client_result.method == main_algorithm(record)
    ]
    if main_algorithm(record) == ALONE:
        alone_results = {}
    return [
        (client_result, alone_results.get(client_result.client))
        for client_result in sorted(
            main_results, key=lambda main_result: main_result.mean(SELECTION_METRIC)
        )
    ]


def wins(record: RunRecord) -> tuple[int, int]:
    """On how many clients the main method is ahead of training alone, and how many have both."""
    complete_pairs = [
        (main_result, alone_result) for main_result, alone_result in pairs(record) if alone_result
    ]
    return sum(
        main_result.sums[SELECTION_METRIC] > alone_result.sums[SELECTION_METRIC]
        for main_result, alone_result in complete_pairs
    ), len(complete_pairs)
