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

    def mean(self, metric: str) -> float:
        """Mean of the metric over the users, of which there is at least one."""
        return self.sums[metric] / self.users


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

    def of(self, algorithm: str) -> list[Json]:
        """The rounds of one algorithm, ascending."""
        return [line for line in self.rounds if line["algorithm"] == algorithm]


def new_directories(run: RunSettings) -> Iterator[Path]:
    """Names for a new run: ``<run.name>-<time>`` where runs are kept, then with -2, -3, ... after.

    The first one that is free is the run's. Nothing is made here. Raises SettingsError for a name
    that would lie elsewhere.
    """
    if not run.name or run.name.startswith(".") or {"/", "\\", "\0"} & set(run.name):
        raise SettingsError(
            f"run.name = {run.name!r} is no name of a directory. Fix: choose one without slashes "
            f"that begins with no dot; run.directory says where runs are written."
        )
    root, name = runs_directory(run), f"{run.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return (root / (f"{name}-{n}" if n > 1 else name) for n in range(1, 1000))


def methods(record: RunRecord) -> list[Method]:
    """The rows of the final table, the best test NDCG@10 first; those without figures come last."""
    if record.finished:
        entries = record.summary.get("methods", ())
        rows = [method_of(entry, record.selected_by) for entry in entries]
    else:
        names = dict.fromkeys(line["algorithm"] for line in record.rounds)
        rows = [_from_rounds(name, record.of(name), record.selected_by) for name in names]
        rows += [
            Method(name, "baseline", "", values)
            for name, values in record.baselines.items()
            if isinstance(values, dict)
        ]
    rows += [variant for row in rows for variant in _variants_of(row)]
    rows += [
        variant
        for entry in record.summary.get("methods", ())
        for variant in _variants_after_the_last_round(entry)
    ]
    return sorted(rows, key=lambda row: -row.metrics.get(TEST_SELECTION, -1.0))


def _variants_of(method: Method) -> list[Method]:
    """A method's variants, out of its figures ``<split>/<variant>/<candidates>/<metric>``."""
    by_variant: dict[str, dict[str, float]] = {}
    for name, value in method.metrics.items():
        parts = name.split("/")
        if len(parts) == 4:
            split, variant, candidates, metric = parts
            by_variant.setdefault(variant, {})[f"{split}/{candidates}/{metric}"] = value
    common = {name: value for name, value in method.metrics.items() if name.endswith("/covered")}
    return [
        Method(f"{method.name}: {variant}", "variant", method.version, {**common, **metrics})
        for variant, metrics in by_variant.items()
    ]


def _variants_after_the_last_round(entry: Json) -> list[Method]:
    """Variants that are evaluated after the last round alone, unless they are the method's row."""
    method = method_of(entry)
    if method.version == "finetuned":
        return []
    return [
        Method(f"{method.name}: {variant}", "variant", "at the end", _own_figures(means))
        for variant, means in (entry.get("variants") or {}).items()
    ]


def _own_figures(means: Mapping[str, float]) -> dict[str, float]:
    """Without those of variants."""
    return {name: value for name, value in means.items() if name.count("/") < 3}


def best_line(lines: Sequence[Json], selected_by: str = SELECTED_BY) -> Json | None:
    """The round that validation NDCG@10 prefers, the earliest of equals; None without figures.

    Round 0, the model before training, is never selected.
    """
    measured = [line for line in lines if selected_by in line and line["round"] > 0]
    return max(measured, key=lambda line: float(line[selected_by]), default=None)


def method_of(entry: Json, selected_by: str = SELECTED_BY) -> Method:
    """A row out of an entry of the summary's methods."""
    kind = entry.get("kind", "federated")
    best = f"round {entry.get('best_round')}" if kind == "federated" else ""
    versions = {best: entry.get("best") or {}}
    if entry.get("finetuned"):
        versions["finetuned"] = entry["finetuned"]
    version = max(versions, key=lambda name: versions[name].get(selected_by, -1.0))
    return Method(
        name=entry["method"],
        kind=kind,
        version=version,
        metrics=versions[version],
        rounds=entry.get("rounds") or 0,
        bytes_down=entry.get("bytes_down") or 0.0,
        bytes_up=entry.get("bytes_up") or 0.0,
        seconds=entry.get("seconds"),
    )


def _from_rounds(name: str, lines: Sequence[Json], selected_by: str) -> Method:
    best = best_line(lines, selected_by)
    return Method(
        name=name,
        kind="federated",
        version=f"round {best['round']}" if best else "",
        metrics={key: value for key, value in (best or {}).items() if "/" in key},
        rounds=len(lines),
        bytes_down=sum(line.get("bytes-down", 0.0) for line in lines),
        bytes_up=sum(line.get("bytes-up", 0.0) for line in lines),
        seconds=sum(line.get("seconds", 0.0) for line in lines),
    )
