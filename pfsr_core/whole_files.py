"""Files that a reader finds whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Where to write what takes the place of ``path`` at one stroke, when the block has ended.

    A block that raises leaves ``path`` as it was and nothing beside it.
    """
    stage = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield stage
        stage.replace(path)
    finally:
        stage.unlink(missing_ok=True)
