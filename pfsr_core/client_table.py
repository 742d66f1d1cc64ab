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
    known = list(dict.fromkeys(m for rows in found.values() for m in rows if m != main))
    models, plain = ([m for m in known if (m in BASELINES) == which] for which in (False, True))
    ships = ["ships"] if any(rows[main].shipped for rows in found.values()) else []
    columns = [*models, *ships, *plain]
    largest_first = sorted(found, key=lambda client: -found[client][main].users)
    return ClientTable(
        titles=["client", "users", "HR@10", "NDCG@10", *columns],
        rows=[_row(client, found[client], main, columns) for client in largest_first],
        note=NOTE.format(main=main),
    )


def _row(
    client: str, rows: Mapping[str, ClientResult], main: str, columns: Sequence[str]
) -> list[str]:
    own = rows[main]
    figures = [_mean(own.hr, own.users), _mean(own.ndcg, own.users)]
    rest = [own.shipped if name == "ships" else _ndcg(rows.get(name)) for name in columns]
    return [client, f"{own.users:g}", *figures, *rest]


def _ndcg(row: ClientResult | None) -> str:
    return "–" if row is None else _mean(row.ndcg, row.users)


def _mean(total: float, users: float) -> str:
    return f"{total / users:.3f}".removeprefix("0")
