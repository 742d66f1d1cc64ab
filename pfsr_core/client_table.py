"""A row for each client, where clients are few or have names that mean something, e.g. markets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pfsr_core.evaluation.baselines import BASELINES
from pfsr_core.run_files import ClientResult, RunRecord
from pfsr_core.run_views import main_algorithm

FEW = 10  # clients that have rows of their own whoever they are
NOTE = "Test items, history excluded; HR@10 and NDCG@10 of {main}, NDCG@10 of the others."


@dataclass(frozen=True)
class ClientTable:
    """``rows`` of text under ``titles``, the client with the most users first."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str


def client_table(record: RunRecord, baselines: bool) -> ClientTable | None:
    """What each client reached with each method, and what it ships where a rule decided that.

    With ``baselines`` these have columns too. None where there is one client, or more than FEW that
    are no values of a column.
    """
    main = main_algorithm(record)
    by_client: dict[str, dict[str, ClientResult]] = {}
    for row in record.clients:
        if row.split == "test" and row.users and (baselines or row.method not in BASELINES):
            by_client.setdefault(row.client, {})[row.method] = row
    named = record.config.get("federation.partition") == "column"
    if len(by_client) < 2 or (len(by_client) > FEW and not named):
        return None
    found = {client: rows for client, rows in by_client.items() if main in rows}
    others = list(dict.fromkeys(m for rows in found.values() for m in rows if m != main))
    ships = any(rows[main].shipped for rows in found.values())
    largest_first = sorted(found, key=lambda client: -found[client][main].users)
    return ClientTable(
        titles=["client", "users", "HR@10", "NDCG@10", *others, *(["ships"] if ships else [])],
        rows=[_row(client, found[client], main, others, ships) for client in largest_first],
        note=NOTE.format(main=main),
    )


def _row(
    client: str,
    rows: Mapping[str, ClientResult],
    main: str,
    others: Sequence[str],
    ships: bool,
) -> list[str]:
    own = rows[main]
    rest = [_mean(rows[name].ndcg, rows[name].users) if name in rows else "–" for name in others]
    figures = [_mean(own.hr, own.users), _mean(own.ndcg, own.users)]
    return [client, f"{own.users:g}", *figures, *rest, *([own.shipped] if ships else [])]


def _mean(total: float, users: float) -> str:
    return f"{total / users:.3f}".removeprefix("0")
