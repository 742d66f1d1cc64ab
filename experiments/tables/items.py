"""The item modes as a table for people: every variant, targets by coverage, bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from experiments.arms.items import (
    CLIENTS,
    ID_DIMS,
    ITEMS,
    LANGUAGE_ID_DIMS,
    METHODS,
    PRIVATE,
    id_arm,
    item_arm,
    language_arm,
)
from experiments.tables.comparison import Record, Records, commits_of, pair_table
from pfsr_core.federated.algorithm import FULL, GLOBAL, WITH_PRIVATE

NDCG = "seen-filtered/ndcg@10"
HEADER = (
    "| method | items | users per client | seeds | HR@10 | NDCG@10 | global | global+private "
    "| full | NDCG@10, own targets | others' targets | kB up |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|",
)
PAIRS = (
    *(
        (item_arm(method, mode, 1), item_arm(method, "shared", 1))
        for method in METHODS
        for mode in ("semantic", "dual")
    ),
    (language_arm(960), item_arm("fed-avg", "semantic", 1)),
    (language_arm(0), id_arm(0)),
    ("fed-avg, semantic items, clients of 47", "fed-avg"),
    ("fed-avg, semantic items, clients of 47", "fed-avg, shared table"),
    ("fed-avg, semantic items, clients of 47", "central"),
    ("pfsr, semantic items, clients of 47", "pfsr"),
    *(
        (item_arm("pfsr", mode, users), item_arm("fed-avg", mode, users))
        for users in CLIENTS
        for mode in ITEMS
    ),
)


def is_item_arm(arm: str) -> bool:
    """Whether the arm is in this table, and the one of the ablation leaves it out."""
    return " items, " in arm


def report(records: Records) -> str:
    """All tables of the item modes; empty where no arm of them was run."""
    rows = items_table(records)
    commits = commits_of({arm: by_seed for arm, by_seed in records.items() if is_item_arm(arm)})
    parts = [
        "Item modes. *global*, *global+private*, *full*: what the federation learnt, with the "
        "client's residual, and trained once more on the client. *Own targets*: items that "
        "the client has trained; *others'*: those that it never met. *kB up*: of a client and "
        f"round. The arms with shared items ran at commits {commits}.",
        "\n".join(rows),
        "\n".join(pair_table(records, PAIRS)),
    ]
    return "\n\n".join(parts) if rows else ""


def items_table(records: Records) -> list[str]:
    """One row for each method, size and mode that was run: test means over the seeds."""
    arms = {
        item_arm(method, mode, users): (method, mode, users)
        for users in CLIENTS
        for method in METHODS
        for mode in (PRIVATE, *ITEMS)
    }
    arms |= {id_arm(dim): ("fed-avg", f"semantic, id-dim {dim}", 1) for dim in ID_DIMS}
    arms |= {
        language_arm(dim): ("fed-avg", f"semantic, wordllama, id-dim {dim}", 1)
        for dim in LANGUAGE_ID_DIMS
    }
    lines = [_row(*what, records[arm]) for arm, what in arms.items() if records.get(arm)]
    return [*HEADER, *lines] if lines else []


def _row(method: str, mode: str, users: int, by_seed: Mapping[int, Record]) -> str:
    def mean(read: Callable[[Record], float | None]) -> str:
        values = [value for r in by_seed.values() if (value := read(r)) is not None]
        return f"{np.mean(values):.4f}" if values else "-"

    cells = [
        method,
        mode,
        str(users),
        str(len(by_seed)),
        mean(lambda r: r["test_means"]["seen-filtered/hr@10"]),
        mean(lambda r: r["test_means"][NDCG]),
        *(mean(lambda r, v=name: _of_variant(r, v)) for name in (GLOBAL, WITH_PRIVATE, FULL)),  # type: ignore[misc]
        *(mean(lambda r, t=targets: _of_targets(r, t)) for targets in ("covered", "cold")),  # type: ignore[misc]
        _kilobytes(by_seed),
    ]
    return f"| {' | '.join(cells)} |"


def _of_variant(record: Record, variant: str) -> float | None:
    found = record.get("variants", {}).get(variant)
    return None if found is None else float(found["test"])


def _of_targets(record: Record, targets: str) -> float | None:
    found = record.get("test_by_target", {}).get(targets)
    return None if found is None else float(found[NDCG])


def _kilobytes(by_seed: Mapping[int, Record]) -> str:
    """To the server, of one client and round; "-" where the records do not say."""
    found = {r["bytes_up_per_client"] for r in by_seed.values() if "bytes_up_per_client" in r}
    return f"{found.pop() / 1000:.0f}" if found else "-"
