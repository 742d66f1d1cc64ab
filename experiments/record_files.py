"""The files that the records of the experiments are stored in.

    summaries.jsonl   one line a record: arm, seed, commit, changed settings, metrics, validation
                      curve, cost; where a per-user map stood, the number of its users
    ranks.parquet     one row a list of ranks: collection, arm, seed, part, users, ranks
    users.parquet     one row per user of a list: users, user, history_length
    pending/          finished records that are not in these files yet, one JSON file each

A record is a JSON object with the keys ``arm`` and ``seed``. Any object in it may hold per-user
results: ``ranks``, the rank of the test item by raw user id, and beside it ``lengths``, the length
of the user's history. The place of that object in the record is the ``part`` of a row: ``""`` for
the record itself, ``"client/markov"`` for a baseline, ``"parts/federated/market-ca"`` for a market.
The users of a list are stored once, however many lists share them, and ``users`` is their
fingerprint.

Other tools read the ranks as a table, one row per user in the order of users.parquet::

    pandas.read_parquet("experiments/records/ranks.parquet").explode("ranks")

Ranks are 32-bit integers, dictionary-encoded and compressed with zstd: on the disk that is as small
as 16 bits, and a catalogue may have more than 65,535 items.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pfsr_core.files import staged

Record = dict[str, Any]

SUMMARIES, RANKS, USERS, PENDING = "summaries.jsonl", "ranks.parquet", "users.parquet", "pending"
PER_USER = ("ranks", "lengths")

NAME = pa.dictionary(pa.int32(), pa.string())
RANK_COLUMNS = pa.schema(
    {
        "collection": NAME,
        "arm": NAME,
        "seed": pa.int32(),
        "part": NAME,
        "users": NAME,
        "ranks": pa.list_(pa.int32()),
    }
)
USER_COLUMNS = pa.schema({"users": NAME, "user": pa.string(), "history_length": pa.int32()})


class RecordKey(NamedTuple):
    """What a record is found by."""

    collection: str
    arm: str
    seed: int

    @property
    def file_name(self) -> str:
        """The name of a file for the record, without spaces and commas."""
        arm = self.arm.replace(", ", "__").replace(" ", "-")
        return f"{self.collection}__{arm}__seed{self.seed}.json"


class RankedUsers(NamedTuple):
    """The users of a list of ranks, in its order."""

    users: tuple[str, ...] = ()
    history_lengths: tuple[int, ...] | None = None

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the SHA-256 of both."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()[:16]


class RankList(NamedTuple):
    """The users of one part of a record and the rank of each one's test item."""

    part: str
    ranked_users: RankedUsers
    ranks: tuple[int, ...]


class StoredRecord(NamedTuple):
    """A record apart: a summary without per-user maps, and these as lists."""

    summary: Record
    rank_lists: tuple[RankList, ...]


StoredRecords = dict[RecordKey, StoredRecord]


def key_of(summary: Mapping[str, Any]) -> RecordKey:
    """The key of a record that names its collection."""
    return RecordKey(summary["collection"], summary["arm"], summary["seed"])


def split_record(record: Mapping[str, Any]) -> StoredRecord:
    """Takes the per-user maps out of a record and leaves their sizes in their places.

    Raises:
        ValueError: The lists could not be put together again to the same record.
    """
    rank_lists: list[RankList] = []

    def without_maps(node: Mapping[str, Any], path: tuple[str, ...]) -> Record:
        summary: Record = {}
        for name, value in node.items():
            if name in PER_USER and "ranks" in node:
                summary[name] = len(value)
            elif isinstance(value, Mapping):
                summary[name] = without_maps(value, (*path, name))
            else:
                summary[name] = value
        if "ranks" in node:
            rank_lists.append(_rank_list(node, path))
        return summary

    summary = without_maps(record, ())
    return StoredRecord(summary, tuple(rank_lists))


def join_record(stored: StoredRecord) -> Record:
    """The record that :func:`split_record` took apart, key for key in the same order.

    Raises:
        ValueError: A list is missing, or has not as many users as the summary says.
    """
    by_part = {rank_list.part: rank_list for rank_list in stored.rank_lists}

    def with_maps(node: Mapping[str, Any], path: tuple[str, ...]) -> Record:
        record: Record = {}
        for name, value in node.items():
            if name in PER_USER and "ranks" in node:
                record[name] = _per_user_map(by_part.get("/".join(path)), name, value)
            elif isinstance(value, Mapping):
                record[name] = with_maps(value, (*path, name))
            else:
                record[name] = value
        return record

    return with_maps(stored.summary, ())


def _rank_list(node: Mapping[str, Any], path: tuple[str, ...]) -> RankList:
    ranks, lengths = node["ranks"], node.get("lengths")
    if any("/" in name or not name for name in path):
        raise ValueError(f"a slash, or nothing, names a part of ranks: {path}")
    if lengths is not None and list(lengths) != list(ranks):
        raise ValueError(f"part '{'/'.join(path)}': 'lengths' and 'ranks' are of other users")
    history_lengths = None if lengths is None else _integers(lengths.values())
    ranked_users = RankedUsers(tuple(ranks), history_lengths)
    return RankList("/".join(path), ranked_users, _integers(ranks.values()))


def _integers(values: Iterable[Any]) -> tuple[int, ...]:
    """The values, when 32 bits hold each of them."""
    found = tuple(values)
    if any(type(value) is not int or not 0 <= value < 2**31 for value in found):
        raise ValueError("ranks and lengths are integers from 0 to 2,147,483,647")
    return found


def _per_user_map(rank_list: RankList | None, name: str, size: int) -> dict[str, int]:
    users, history_lengths = rank_list.ranked_users if rank_list else RankedUsers()
    values = rank_list.ranks if rank_list and name == "ranks" else history_lengths or ()
    if len(values) != size:
        raise ValueError(f"{len(values)} of {size} '{name}' found. Fix: restore {RANKS}, {USERS}")
    return dict(zip(users, values, strict=True))


def read_summaries(directory: Path) -> dict[RecordKey, Record]:
    """The summaries of all collections."""
    path = directory / SUMMARIES
    text = path.read_text("utf-8") if path.exists() else ""
    summaries = [json.loads(line) for line in text.split("\n") if line]
    return {key_of(summary): summary for summary in summaries}


def read_pending(directory: Path) -> dict[RecordKey, Record]:
    """Records that are one file each."""
    files = sorted((directory / PENDING).glob("*.json"))
    records = [json.loads(file.read_text("utf-8")) for file in files]
    return {key_of(record): record for record in records}


def read_records(directory: Path) -> StoredRecords:
    """All records, pending ones in place of older ones.

    Lists of ranks without a summary are what a crash in :func:`write_records` leaves. Their records
    are pending still.
    """
    summaries = read_summaries(directory)
    rank_lists = _read_rank_lists(directory) if summaries else {}
    stored = {
        key: StoredRecord(summary, tuple(rank_lists.get(key, ())))
        for key, summary in summaries.items()
    }
    pending = {key: split_record(record) for key, record in read_pending(directory).items()}
    return dict(sorted({**stored, **pending}.items(), key=lambda item: item[0].file_name))


def _read_rank_lists(directory: Path) -> dict[RecordKey, list[RankList]]:
    ranked_users = _read_ranked_users(directory)
    found: dict[RecordKey, list[RankList]] = {}
    for row in pq.read_table(directory / RANKS).to_pylist():
        key = RecordKey(row["collection"], row["arm"], row["seed"])
        users = ranked_users.get(row["users"], RankedUsers())
        found.setdefault(key, []).append(RankList(row["part"], users, tuple(row["ranks"])))
    return found


def _read_ranked_users(directory: Path) -> dict[str, RankedUsers]:
    rows = pq.read_table(directory / USERS).to_pylist()
    found: dict[str, tuple[list[str], list[int | None]]] = {}
    for row in rows:
        users, lengths = found.setdefault(row["users"], ([], []))
        users.append(row["user"])
        lengths.append(row["history_length"])
    return {
        fingerprint: RankedUsers(tuple(users), _all_or_none(lengths))
        for fingerprint, (users, lengths) in found.items()
    }


def _all_or_none(lengths: Sequence[int | None]) -> tuple[int, ...] | None:
    known = tuple(length for length in lengths if length is not None)
    return known if len(known) == len(lengths) else None


def write_records(directory: Path, records: StoredRecords) -> None:
    """Writes the three files, each atomically, the summaries last."""
    ranked_users = {
        rank_list.ranked_users.fingerprint(): rank_list.ranked_users
        for stored in records.values()
        for rank_list in stored.rank_lists
    }
    user_rows = [
        {"users": fingerprint, "user": user, "history_length": length}
        for fingerprint, (users, lengths) in ranked_users.items()
        for user, length in zip(users, lengths or [None] * len(users), strict=True)
    ]
    rank_rows = [
        {
            **key._asdict(),
            "part": part,
            "users": users.fingerprint(),
            "ranks": ranks,
        }
        for key, stored in records.items()
        for part, users, ranks in stored.rank_lists
    ]
    _write_table(directory / USERS, pa.Table.from_pylist(user_rows, USER_COLUMNS))
    _write_table(directory / RANKS, pa.Table.from_pylist(rank_rows, RANK_COLUMNS))
    with staged(directory / SUMMARIES) as stage:
        stage.write_text("".join(json_line(stored.summary) for stored in records.values()), "utf-8")


def _write_table(path: Path, table: pa.Table) -> None:
    with staged(path) as stage:
        pq.write_table(table, stage, compression="zstd", compression_level=19)


def json_line(content: Mapping[str, Any]) -> str:
    """One line of JSON with its end."""
    return json.dumps(content, ensure_ascii=False) + "\n"
