"""What a run directory holds, and the row of each method. Read by :mod:`pfsr_core.runs.reading`.

    config.json  environment.json  data.json    what was run, on what, with which data
    metrics.jsonl                               one line for each algorithm and round
    clients.csv                                 sums of each client, method by method
    summary.json                                the figures of the finished run
    item-map.json                               item maps of a few clients, from private states:
                                                only where those are on the same machine
    model/                                      the trained model, of a run without a network
                                                (:mod:`pfsr_core.runs.model_files`)

A run that is still going on has no summary: its methods are then put together from the rounds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfsr_core.evaluation.metrics.registry import (
    OF_CLIENTS,
    SELECTION_METRIC,
    TEST_SELECTION,
    VALID_SELECTION,
)
from pfsr_core.settings.fields import SettingsError
from pfsr_core.settings.sections import RunSettings, runs_directory

Json = dict[str, Any]

SELECTED_BY = VALID_SELECTION
ITEM_MAP = "item-map.json"
CENTRAL = "central"  # the name of averaging over a single client, which has all data
LONGEST_RUN_NAME = 200  # bytes: file systems take 255, and a time is added
SELECTORS = {"users": SELECTED_BY, "clients": f"valid/{OF_CLIENTS}{SELECTION_METRIC}"}
"""The figure that selects a round, by run.selected-by."""


class RunError(ValueError):
    """A run directory that cannot be read; says which file and what to do."""


@dataclass(frozen=True)
class ClientResult:
    """One client's outcome with one method.

    Attributes:
        method: Name of the method.
        client: Name of the client.
        users: Number of its users.
        split: "valid" or "test".
        sums: Sums over the users by name of the metric, seen items filtered.
        shipped: "federated" or "local" where a rule decided between them and it may be reported.
    """

    method: str
    client: str
    users: float
    split: str
    sums: Mapping[str, float]
    shipped: str = ""

    def mean(self, metric_name: str) -> float:
        """Mean of the metric over the users, of which there is at least one."""
        return self.sums[metric_name] / self.users


@dataclass(frozen=True)
class Method:
    """One row of the final table.

    Attributes:
        name: Name of the method.
        kind: "federated", "baseline", or "variant" of a federated one.
        version: The model that validation NDCG@10 prefers: the best round, or "finetuned".
        metrics: Means of that model, named ``<split>/<candidates>/<metric>``.
        rounds: Number of rounds.
        bytes_down: Bytes that the server sent.
        bytes_up: Bytes that the server received.
        seconds: Wall time, None where it was not taken.
    """

    name: str
    kind: str
    version: str
    metrics: Mapping[str, float]
    rounds: int = 0
    bytes_down: float = 0.0
    bytes_up: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True)
class RunRecord:
    """Everything that is known about a run; what is not written yet is empty."""

    directory: Path
    config: Json
    environment: Json
    data: Json
    summary: Json
    rounds: tuple[Json, ...]
    clients: tuple[ClientResult, ...]
    baselines: Json
    item_map: Json

    @property
    def name(self) -> str:
        """The run's name, else that of its directory."""
        return str(self.summary.get("run") or self.directory.resolve().name)

    @property
    def selected_by(self) -> str:
        """The figure by which a round was selected."""
        return SELECTORS[str(self.config.get("run.selected-by", "users"))]

    @property
    def finished(self) -> bool:
        """Whether the run has written its summary."""
        return bool(self.summary)

    def of(self, algorithm_name: str) -> list[Json]:
        """The rounds of one algorithm, ascending."""
        return [
            round_line for round_line in self.rounds if round_line["algorithm"] == algorithm_name
        ]


def check_run_name(run_settings: RunSettings) -> None:
    """Raises SettingsError for a ``run.name`` that is no name of a directory."""
    run_name = run_settings.name
    if not run_name or run_name.startswith(".") or {"/", "\\", "\0"} & set(run_name):
        raise SettingsError(
            f"run.name = {run_name!r} is no name of a directory. Fix: choose one without "
            f"slashes that begins with no dot; run.directory says where runs are written."
        )
    if len(run_name.encode("utf-8", "replace")) > LONGEST_RUN_NAME:
        raise SettingsError(
            f"run.name = {run_name[:20]!r}... is no name of a directory: it is too long. Fix: "
            f"choose one of at most {LONGEST_RUN_NAME} bytes."
        )


def new_directories(run_settings: RunSettings) -> Iterator[Path]:
    """Names for a new run: ``<run.name>-<time>`` where runs are kept, then with -2, -3, ... after.

    The first one that is free is the run's. Nothing is made here. Raises SettingsError for a name
    that would lie elsewhere.
    """
    check_run_name(run_settings)
    runs_root = runs_directory(run_settings)
    run_name = f"{run_settings.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return (runs_root / (f"{run_name}-{n}" if n > 1 else run_name) for n in range(1, 1000))


def methods(record: RunRecord) -> list[Method]:
    """The rows of the final table, the best test NDCG@10 first; those without figures come last."""
    if record.finished:
        method_entries = record.summary.get("methods", ())
        method_rows = [
            method_of(method_entry, record.selected_by) for method_entry in method_entries
        ]
    else:
        algorithm_names = dict.fromkeys(round_line["algorithm"] for round_line in record.rounds)
        method_rows = [
            _from_rounds(method_name, record.of(method_name), record.selected_by)
            for method_name in algorithm_names
        ]
        method_rows += [
            Method(method_name, "baseline", "", metric_means)
            for method_name, metric_means in record.baselines.items()
            if isinstance(metric_means, dict)
        ]
    method_rows += [variant for method_row in method_rows for variant in _variants_of(method_row)]
    method_rows += [
        variant
        for method_entry in record.summary.get("methods", ())
        for variant in _variants_after_the_last_round(method_entry)
    ]
    return sorted(method_rows, key=lambda method_row: -method_row.metrics.get(TEST_SELECTION, -1.0))


def _variants_of(method: Method) -> list[Method]:
    """A method's variants, out of its figures ``<split>/<variant>/<candidates>/<metric>``."""
    by_variant: dict[str, dict[str, float]] = {}
    for metric_key, metric_value in method.metrics.items():
        key_parts = metric_key.split("/")
        if len(key_parts) == 4:
            split, variant_name, candidates, metric_name = key_parts
            by_variant.setdefault(variant_name, {})[f"{split}/{candidates}/{metric_name}"] = (
                metric_value
            )
    coverage_metrics = {
        metric_key: metric_value
        for metric_key, metric_value in method.metrics.items()
        if metric_key.endswith("/covered")
    }
    return [
        Method(
            f"{method.name}: {variant_name}",
            "variant",
            method.version,
            {**coverage_metrics, **variant_metrics},
        )
        for variant_name, variant_metrics in by_variant.items()
    ]


def _variants_after_the_last_round(method_entry: Json) -> list[Method]:
    """Variants that are evaluated after the last round alone, unless they are the method's row."""
    method = method_of(method_entry)
    if method.version == "finetuned":
        return []
    return [
        Method(
            f"{method.name}: {variant_name}", "variant", "at the end", _own_figures(metric_means)
        )
        for variant_name, metric_means in (method_entry.get("variants") or {}).items()
    ]


def _own_figures(metric_means: Mapping[str, float]) -> dict[str, float]:
    """Without those of variants."""
    return {
        metric_key: metric_value
        for metric_key, metric_value in metric_means.items()
        if metric_key.count("/") < 3
    }


def best_line(round_lines: Sequence[Json], selected_by: str = SELECTED_BY) -> Json | None:
    """The round that validation NDCG@10 prefers, the earliest of equals; None without figures.

    Round 0, the model before training, is never selected.
    """
    evaluated_lines = [
        round_line
        for round_line in round_lines
        if selected_by in round_line and round_line["round"] > 0
    ]
    return max(evaluated_lines, key=lambda round_line: float(round_line[selected_by]), default=None)


def method_of(method_entry: Json, selected_by: str = SELECTED_BY) -> Method:
    """A row out of an entry of the summary's methods."""
    method_kind = method_entry.get("kind", "federated")
    best_version = f"round {method_entry.get('best_round')}" if method_kind == "federated" else ""
    versions = {best_version: method_entry.get("best") or {}}
    if method_entry.get("finetuned"):
        versions["finetuned"] = method_entry["finetuned"]
    version = max(versions, key=lambda version_name: versions[version_name].get(selected_by, -1.0))
    return Method(
        name=method_entry["method"],
        kind=method_kind,
        version=version,
        metrics=versions[version],
        rounds=method_entry.get("rounds") or 0,
        bytes_down=method_entry.get("bytes_down") or 0.0,
        bytes_up=method_entry.get("bytes_up") or 0.0,
        seconds=method_entry.get("seconds"),
    )


def _from_rounds(algorithm_name: str, round_lines: Sequence[Json], selected_by: str) -> Method:
    best_round = best_line(round_lines, selected_by)
    return Method(
        name=algorithm_name,
        kind="federated",
        version=f"round {best_round['round']}" if best_round else "",
        metrics={
            metric_key: metric_value
            for metric_key, metric_value in (best_round or {}).items()
            if "/" in metric_key
        },
        rounds=len(round_lines),
        bytes_down=sum(round_line.get("bytes-down", 0.0) for round_line in round_lines),
        bytes_up=sum(round_line.get("bytes-up", 0.0) for round_line in round_lines),
        seconds=sum(round_line.get("seconds", 0.0) for round_line in round_lines),
    )
