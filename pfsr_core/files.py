"""Atomic writes: a reader finds the old file or the new one, never a part of one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(file_path: Path) -> Iterator[Path]:
    """A path to write to, which replaces ``file_path`` atomically when the block has ended.

    If the block raises, ``file_path`` stays as it was and nothing is left beside it.
    """
    staged_path = file_path.with_name(f".{file_path.name}.{os.getpid()}")
    try:
        yield staged_path
        staged_path.replace(file_path)
    finally:
        staged_path.unlink(missing_ok=True)


@contextmanager
def staged_directory(directory: Path) -> Iterator[Path]:
    """A new directory to write into, which replaces ``directory`` when the block has ended.

    If the block raises, ``directory`` stays as it was and nothing is left beside it.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    stage_directory = directory.with_name(f".{directory.name}.{os.getpid()}")
    old_directory = directory.with_name(f".{directory.name}.{os.getpid()}.old")
    try:
        stage_directory.mkdir()
        yield stage_directory
        if directory.exists():
            directory.rename(old_directory)
        try:
            stage_directory.rename(directory)
        except OSError:
            if old_directory.exists():
                old_directory.rename(directory)
            raise
    finally:
        shutil.rmtree(stage_directory, ignore_errors=True)
    shutil.rmtree(old_directory, ignore_errors=True)


def write_json(file_path: Path, content: object, indent: int | None = 2) -> None:
    """Writes JSON atomically.

    Args:
        file_path: The file to create or to replace.
        content: A value that JSON can express.
        indent: Spaces of indentation; None for one line.
    """
    with staged(file_path) as staged_path:
        staged_path.write_text(
            json.dumps(content, indent=indent, ensure_ascii=False) + "\n", "utf-8"
        )


def append_line(file_path: Path, content: object) -> None:
    """Adds ``content`` as one line of JSON."""
    with file_path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(content, ensure_ascii=False) + "\n")


def write_atomically(file_path: Path, content: bytes) -> None:
    """Writes ``content`` atomically and durably: also after a power cut the file is complete."""
    file_path.parent.mkdir(parents=True, exist_ok=True)
    with staged(file_path) as staged_path, staged_path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    directory_fd = os.open(file_path.parent, os.O_RDONLY)
    try:
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)
