"""Reads a run directory; errors name the file and the line.

Runs of earlier versions are read too: OLD_NAMES are replaced by the names of today.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from pfsr_core.evaluation.metrics.registry import SELECTION_METRIC, headline_metrics
from pfsr_core.runs.files import (
    ITEM_MAP,
    SELECTORS,
    ClientResult,
    Json,
    RunError,
    RunRecord,
)
from pfsr_core.runs.results import client_columns

OLD_NAMES = {
    "excluded": "seen-filtered",
    "kept": "seen-included",
    "views": "variants",
}
"""Parts of the names of figures in runs of earlier versions, and what they are called today."""
OLD_ITEM_MAP = "item-views.json"


def read_run(directory: Path) -> RunRecord:
    """Reads what is there. Raises RunError when it is no run directory or a file is broken."""
    known = ("config.json", "metrics.jsonl", "summary.json")
    if not any((directory / name).is_file() for name in known):
        raise RunError(
            f"{directory} is no run directory: it has none of {', '.join(known)}. "
            f"Fix: give the directory of one run, e.g. runs/pfsr-20250131-120000."
        )
    return RunRecord(
        directory=directory,
        config=_read_config(directory / "config.json"),
        environment=_read_json(directory / "environment.json"),
        data=_read_json(directory / "data.json"),
        summary=_read_summary(directory / "summary.json"),
        rounds=_read_rounds(directory / "metrics.jsonl"),
        clients=_read_clients(directory / "clients.csv"),
        baselines=_with_new_names(_read_json(directory / "baselines.json")),
        item_map=_read_json(directory / ITEM_MAP) or _read_json(directory / OLD_ITEM_MAP),
    )


def _read_json(path: Path) -> Json:
    """The object in ``path``, empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is broken: {error}. Fix: run again, or remove the file.") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} does not hold an object. Fix: run again, or remove the file.")
    return content


def _read_config(path: Path) -> Json:
    """The settings of a run; only what is read of them here is checked."""
    config = _read_json(path)
    if config.get("run.selected-by", "users") not in SELECTORS:
        raise RunError(
            f"{path}: run.selected-by = {config['run.selected-by']!r} is not known. "
            f"Fix: write one of {', '.join(SELECTORS)}."
        )
    return config


def _read_summary(path: Path) -> Json:
    """The figures of a finished run. Raises RunError unless its methods have names and numbers."""
    summary = _with_new_names(_read_json(path))
    methods = summary.get("methods", [])
    if not isinstance(methods, list) or not all(_is_method(entry) for entry in methods):
        raise RunError(
            f"{path}: methods is no list of objects with a method and its figures. "
            f"Fix: run again, or remove the file."
        )
    return summary


def _is_method(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("method"), str):
        return False
    variants = entry.get("variants") or {}
    if not isinstance(variants, dict):
        return False
    figures = [entry.get("best") or {}, entry.get("finetuned") or {}, *variants.values()]
    return all(isinstance(one, dict) and all(map(_is_number, one.values())) for one in figures)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _read_rounds(path: Path) -> tuple[Json, ...]:
    """The lines by algorithm and round; a resumed run may write a round twice: the last counts."""
    if not path.is_file():
        return ()
    lines = path.read_text("utf-8", errors="replace").split("\n")
    by_round: dict[tuple[str, int], Json] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        entry = _read_round(path, number, line, last=number == len(lines))
        if entry is not None:
            by_round[entry["algorithm"], entry["round"]] = entry
    order = list(dict.fromkeys(algorithm for algorithm, _ in by_round))
    keys = sorted(by_round, key=lambda key: (order.index(key[0]), key[1]))
    return tuple(by_round[key] for key in keys)


def _read_round(path: Path, number: int, line: str, last: bool) -> Json | None:
    try:
        entry = json.loads(line)
        entry = {**entry, "algorithm": str(entry["algorithm"]), "round": int(entry["round"])}
        if "kept" in entry:  # of an earlier version
            entry["mask-ratio"] = entry.pop("kept")
        return _with_new_names(entry)
    except (ValueError, KeyError, TypeError):
        if last:  # without its line end: still being written
            return None
        raise RunError(
            f"{path}, line {number}: not a round (an object with algorithm and round). "
            f"Fix: remove the line."
        ) from None


def _read_clients(path: Path) -> tuple[ClientResult, ...]:
    if not path.is_file():
        return ()
    with path.open(encoding="utf-8", newline="") as file:
        try:
            return tuple(_client(row) for row in csv.DictReader(file))
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{path}: cannot read {error}. Fix: it needs the columns "
                f"{', '.join(client_columns())}; run again, or remove the file."
            ) from None


def _client(row: Mapping[str, str]) -> ClientResult:
    return ClientResult(
        method=row["method"],
        client=row["client"],
        users=float(row["users"]),
        split=row["split"],
        sums=_client_sums(row),
        shipped=row.get("shipped", ""),
    )


def _client_sums(row: Mapping[str, str]) -> dict[str, float]:
    """Without the metrics that were not computed yet when the run was made."""
    return {
        metric.name: float(row[f"{metric.name}_sum"])
        for metric in headline_metrics()
        if metric.name == SELECTION_METRIC or row.get(f"{metric.name}_sum")
    }


def _with_new_names(content: Json) -> Json:
    """The same with the names of figures of earlier versions replaced, at any depth."""
    return {
        "/".join(OLD_NAMES.get(part, part) for part in name.split("/")): (
            _with_new_names(value) if isinstance(value, dict) else _in_lists(value)
        )
        for name, value in content.items()
    }


def _in_lists(value: object) -> object:
    if not isinstance(value, list):
        return value
    return [_with_new_names(item) if isinstance(item, dict) else item for item in value]
