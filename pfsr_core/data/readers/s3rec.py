"""Reader of the sequence files of S3-Rec (Zhou et al., CIKM 2020): ``user item item ...`` a line.

Items stand in time order and there are no times, so the position in the line is the timestamp.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pfsr_core.data.errors import MalformedFileError
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.readers.table import Schema, Table, read_lines, to_interactions


def read_s3rec(file_path: Path, source: str = "") -> Interactions:
    """Interactions of a sequence file; user and item ids are whole numbers from 1."""
    histories = [line_number.split() for line_number in read_lines(file_path)]
    _check_histories(file_path, histories)
    rows = [
        (history[0], item, position, line_number)
        for line_number, history in enumerate(histories, start=1)
        for position, item in enumerate(history[1:])
    ]
    users, items, positions, line_numbers = zip(*rows, strict=True)
    columns = {"user": users, "item": items, "timestamp": [str(p) for p in positions]}
    schema = Schema("user", "item", "timestamp", positive_ids=True)
    interactions = to_interactions(
        Table(file_path, line_numbers, columns), schema, source or file_path.stem
    )
    return replace(interactions, has_times=False)


def _check_histories(file_path: Path, histories: list[list[str]]) -> None:
    line_of_user: dict[str, int] = {}
    for line_number, history in enumerate(histories, start=1):
        if len(history) < 2:
            problem = "a user without items" if history else "the line is empty"
            fix = "write the user and then the items, separated by spaces, or delete the line"
            raise MalformedFileError(file_path, line_number, problem, fix)
        first_line = line_of_user.setdefault(history[0], line_number)
        # Positions are the only times: two lines of one user could not be put in order.
        if first_line != line_number:
            problem = f"user {history[0]!r} already has a history in line {first_line}"
            raise MalformedFileError(file_path, line_number, problem, "join both lines into one")
