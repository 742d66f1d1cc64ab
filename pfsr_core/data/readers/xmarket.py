"""Reader of XMarket's processed logs (Bonab et al., CIKM 2021): one ``<market>_5core.txt`` each.

A header and ``userId itemId rate date``, separated by spaces. Dates are days, so the order of a
user's interactions is by (date, line of the file), as everywhere a stable sort by time. Item ids
mean the same in all markets. User ids do not: a user is called ``<market>/<raw id>``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from pfsr_core.data.errors import DataUnavailableError
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.readers.delimited import read_delimited

SUFFIX = "_5core.txt"
MARKET = "market"


def read_xmarket(path: str) -> Interactions:
    """All markets of a directory, in the order of their names, or the one market of a file.

    ``columns`` has the market of each row, and the rating under ``rate``. Raises
    DataUnavailableError without a file of a market, MalformedFileError for what cannot be read.
    """
    source_path = Path(path).expanduser()
    files = sorted(source_path.glob(f"*{SUFFIX}")) if source_path.is_dir() else [source_path]
    market_files = [file for file in files if file.is_file() and file.name.endswith(SUFFIX)]
    if not path or not market_files:
        reason = f"there is no *{SUFFIX}" if path else "no path was given"
        fix = f"give a directory with <market>{SUFFIX} files, or one of them"
        raise DataUnavailableError("xmarket", [(path or "path", reason)], fix)
    return _concatenate(
        {
            file.name.removesuffix(SUFFIX): read_delimited(file, " ", "xmarket")
            for file in market_files
        }
    )


def _concatenate(markets: Mapping[str, Interactions]) -> Interactions:
    """The logs one after the other, items numbered by first appearance."""
    logs = list(markets.values())
    code_of_id: dict[str, int] = {}
    item_codes = [
        np.array(
            [code_of_id.setdefault(raw, len(code_of_id) + 1) for raw in log.item_ids], np.int64
        )
        for log in logs
    ]
    first_users = np.cumsum([0, *(len(log.user_ids) for log in logs)])
    market_cells = np.repeat(np.array(list(markets)), [len(log) for log in logs])
    shared_columns = [name for name in logs[0].columns if all(name in log.columns for log in logs)]
    return replace(
        logs[0],
        users=np.concatenate([log.users + n for log, n in zip(logs, first_users, strict=False)]),
        items=np.concatenate(
            [code[log.items - 1] for log, code in zip(logs, item_codes, strict=True)]
        ),
        timestamps=np.concatenate([log.timestamps for log in logs]),
        user_ids=tuple(f"{name}/{raw}" for name, log in markets.items() for raw in log.user_ids),
        item_ids=tuple(code_of_id),
        titles={raw: title for log in logs for raw, title in log.titles.items()},
        texts={raw: text for log in logs for raw, text in log.texts.items()},
        columns={
            **{
                name: np.concatenate([log.columns[name] for log in logs]) for name in shared_columns
            },
            MARKET: market_cells,
        },
    )
