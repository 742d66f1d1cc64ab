"""Atomic writes: a reader finds the old file or the new one, never a part of one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A path to write to, which replaces ``path`` atomically when the block has ended.

    If the block raises, ``path`` stays as it was and nothing is left beside it.
    """
    stage = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield stage
        stage.replace(path)
    finally:
        stage.unlink(missing_ok=True)


def write_json(path: Path, content: object, indent: int | None = 2) -> None:
    """Writes ``content`` as JSON, atomically."""
    with staged(path) as stage:
        stage.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", "utf-8")


def append_line(path: Path, content: object) -> None:
    """Adds ``content`` as one line of JSON."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(content, ensure_ascii=False) + "\n")


def write_atomically(path: Path, content: bytes) -> None:
    """Writes ``content`` atomically and durably: also after a power cut the file is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged(path) as stage, stage.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
