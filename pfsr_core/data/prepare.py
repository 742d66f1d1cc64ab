"""A dataset of any readable form, checked and written with its vocabulary and facts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from pfsr_core.data.cleaning import Cleaning, Facts, clean, market_facts
from pfsr_core.data.datasets import load_dataset
from pfsr_core.data.describe import describe
from pfsr_core.data.errors import DataError
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.splits import leave_one_out
from pfsr_core.data.vocabulary import save_vocabulary
from pfsr_core.files import staged, write_json


def prepare(source: str, path: str, directory: Path) -> Path:
    """Writes ``interactions.parquet``, ``vocabulary.json`` and ``data.json``; returns the first.

    Rows keep their order, which decides ties in time. Raises DataError.
    """
    _check_apart(path, directory)
    interactions = load_dataset(source, path)
    facts = describe(interactions, leave_one_out(interactions))
    directory.mkdir(parents=True, exist_ok=True)
    parquet_file = directory / "interactions.parquet"
    _write_table(interactions_table(interactions), parquet_file)
    save_vocabulary(directory, interactions.item_ids, interactions.titles)
    write_json(directory / "data.json", facts)
    return parquet_file


def clean_copy(
    source: str, path: str, rules: Cleaning, directory: Path | None = None
) -> tuple[Facts, Facts]:
    """Cleans a dataset: the facts of its markets before and after. Raises DataError.

    With ``directory`` it writes ``interactions.csv``, which the dataset ``file`` reads,
    ``items.csv`` with the item that each joined one has become, and ``cleaning.json``.
    """
    if directory is not None:
        _check_apart(path, directory)
    raw_log = load_dataset(source, path)
    cleaned = clean(raw_log, rules)
    facts_before, facts_after = (
        market_facts(log, rules.column, rules.join_variants) for log in (raw_log, cleaned.log)
    )
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        _write_table(interactions_table(cleaned.log), directory / "interactions.csv")
        joined_items = {"item": [*cleaned.item_map], "joined": [*cleaned.item_map.values()]}
        _write_table(pa.table(joined_items), directory / "items.csv")
        write_json(directory / "cleaning.json", {"before": facts_before, "after": facts_after})
    return facts_before, facts_after


def _write_table(table: pa.Table, file_path: Path) -> None:
    """Writes atomically: a truncated log would read like a complete one."""
    with staged(file_path) as stage:
        (pa_csv.write_csv if file_path.suffix == ".csv" else pq.write_table)(table, stage)


def _check_apart(path: str, directory: Path) -> None:
    """Raises DataError where files of the result could replace files of the source."""
    source = Path(path).expanduser().resolve()
    if path and source.exists() and directory.resolve() in (source, source.parent):
        raise DataError(
            f"{directory} holds the data that are read, and what is written there has common names "
            f"as interactions.csv. Fix: give --out another directory."
        )


def interactions_table(interactions: Interactions) -> pa.Table:
    """The log with columns user, item and timestamp, then title, text and the source's own."""
    known_columns = {
        "user": np.array(interactions.user_ids, str)[interactions.users],
        "item": np.array(interactions.item_ids, str)[interactions.items - 1],
        "timestamp": interactions.timestamps,
    }
    text_columns = {"title": interactions.titles, "text": interactions.texts}
    known_columns |= {
        name: np.array([text_by_item.get(raw_id, "") for raw_id in interactions.item_ids])[
            interactions.items - 1
        ]
        for name, text_by_item in text_columns.items()
        if text_by_item
    }
    other_columns = {k: v for k, v in interactions.columns.items() if k not in known_columns}
    return pa.table(
        {
            name: pa.array(values.tolist())
            for name, values in {**known_columns, **other_columns}.items()
        }
    )
