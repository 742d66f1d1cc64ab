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


def read_run(run_directory: Path) -> RunRecord:
    """Reads what is there. Raises RunError when it is no run directory or a file is broken."""
    known_files = ("config.json", "metrics.jsonl", "summary.json")
    if not any((run_directory / file_name).is_file() for file_name in known_files):
        raise RunError(
            f"{run_directory} is no run directory: it has none of {', '.join(known_files)}. "
            f"Fix: give the directory of one run, e.g. runs/pfsr-20250131-120000."
        )
    return RunRecord(
        directory=run_directory,
        config=_read_config(run_directory / "config.json"),
        environment=_read_json(run_directory / "environment.json"),
        data=_read_json(run_directory / "data.json"),
        summary=_read_summary(run_directory / "summary.json"),
        rounds=_read_rounds(run_directory / "metrics.jsonl"),
        clients=_read_clients(run_directory / "clients.csv"),
        baselines=_with_new_names(_read_json(run_directory / "baselines.json")),
        item_map=_read_json(run_directory / ITEM_MAP) or _read_json(run_directory / OLD_ITEM_MAP),
    )


def _read_json(file_path: Path) -> Json:
    """The object in ``file_path``, empty when there is no such file."""
    if not file_path.is_file():
        return {}
    try:
        json_object = json.loads(file_path.read_text("utf-8"))
    except ValueError as error:
        raise RunError(
            f"{file_path} is broken: {error}. Fix: run again, or remove the file."
        ) from None
    if not isinstance(json_object, dict):
        raise RunError(f"{file_path} does not hold an object. Fix: run again, or remove the file.")
    return json_object


def _read_config(config_path: Path) -> Json:
    """The settings of a run; only what is read of them here is checked."""
    run_config = _read_json(config_path)
    if run_config.get("run.selected-by", "users") not in SELECTORS:
        raise RunError(
            f"{config_path}: run.selected-by = {run_config['run.selected-by']!r} is not known. "
            f"Fix: write one of {', '.join(SELECTORS)}."
        )
    return run_config


def _read_summary(summary_path: Path) -> Json:
    """The figures of a finished run. Raises RunError unless its methods have names and numbers."""
    run_summary = _with_new_names(_read_json(summary_path))
    method_entries = run_summary.get("methods", [])
    if not isinstance(method_entries, list) or not all(
        _is_method(method_entry) for method_entry in method_entries
    ):
        raise RunError(
            f"{summary_path}: methods is no list of objects with a method and its figures. "
            f"Fix: run again, or remove the file."
        )
    return run_summary


def _is_method(method_entry: object) -> bool:
    if not isinstance(method_entry, dict) or not isinstance(method_entry.get("method"), str):
        return False
    variant_means = method_entry.get("variants") or {}
    if not isinstance(variant_means, dict):
        return False
    model_means = [
        method_entry.get("best") or {},
        method_entry.get("finetuned") or {},
        *variant_means.values(),
    ]
    return all(
        isinstance(metric_means, dict) and all(map(_is_number, metric_means.values()))
        for metric_means in model_means
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _read_rounds(metrics_path: Path) -> tuple[Json, ...]:
    """The lines by algorithm and round; a resumed run may write a round twice: the last counts."""
    if not metrics_path.is_file():
        return ()
    text_lines = metrics_path.read_text("utf-8", errors="replace").split("\n")
    by_round: dict[tuple[str, int], Json] = {}
    for line_number, text_line in enumerate(text_lines, start=1):
        if not text_line.strip():
            continue
        round_entry = _read_round(
            metrics_path, line_number, text_line, is_last=line_number == len(text_lines)
        )
        if round_entry is not None:
            by_round[round_entry["algorithm"], round_entry["round"]] = round_entry
    algorithm_order = list(dict.fromkeys(algorithm_name for algorithm_name, _ in by_round))
    round_keys = sorted(
        by_round, key=lambda round_key: (algorithm_order.index(round_key[0]), round_key[1])
    )
    return tuple(by_round[round_key] for round_key in round_keys)


def _read_round(metrics_path: Path, line_number: int, text_line: str, is_last: bool) -> Json | None:
    try:
        round_entry = json.loads(text_line)
        round_entry = {
            **round_entry,
            "algorithm": str(round_entry["algorithm"]),
            "round": int(round_entry["round"]),
        }
        if "kept" in round_entry:  # of an earlier version
            round_entry["mask-ratio"] = round_entry.pop("kept")
        return _with_new_names(round_entry)
    except (ValueError, KeyError, TypeError):
        if is_last:  # without its line end: still being written
            return None
        raise RunError(
            f"{metrics_path}, line {line_number}: not a round (an object with algorithm and "
            f"round). Fix: remove the line."
        ) from None


def _read_clients(csv_path: Path) -> tuple[ClientResult, ...]:
    if not csv_path.is_file():
        return ()
    with csv_path.open(encoding="utf-8", newline="") as csv_file:
        try:
            return tuple(_client(csv_row) for csv_row in csv.DictReader(csv_file))
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{csv_path}: cannot read {error}. Fix: it needs the columns "
                f"{', '.join(client_columns())}; run again, or remove the file."
            ) from None


def _client(csv_row: Mapping[str, str]) -> ClientResult:
    return ClientResult(
        method=csv_row["method"],
        client=csv_row["client"],
        users=float(csv_row["users"]),
        split=csv_row["split"],
        sums=_client_sums(csv_row),
        shipped=csv_row.get("shipped", ""),
    )


def _client_sums(csv_row: Mapping[str, str]) -> dict[str, float]:
    """Without the metrics that were not computed yet when the run was made."""
    return {
        metric.name: float(csv_row[f"{metric.name}_sum"])
        for metric in headline_metrics()
        if metric.name == SELECTION_METRIC or csv_row.get(f"{metric.name}_sum")
    }


def _with_new_names(json_object: Json) -> Json:
    """The same with the names of figures of earlier versions replaced, at any depth."""
    return {
        "/".join(OLD_NAMES.get(key_part, key_part) for key_part in json_key.split("/")): (
            _with_new_names(json_value) if isinstance(json_value, dict) else _in_lists(json_value)
        )
        for json_key, json_value in json_object.items()
    }


def _in_lists(json_value: object) -> object:
    if not isinstance(json_value, list):
        return json_value
    return [
        _with_new_names(list_item) if isinstance(list_item, dict) else list_item
        for list_item in json_value
    ]
