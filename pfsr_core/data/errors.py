"""What can be wrong with data, always with the place and the fix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class DataError(ValueError):
    """Data that cannot be used as it is; the message names the place and the fix."""


class MalformedFileError(DataError):
    """A file that breaks its format.

    Attributes:
        path: The file.
        line: From 1 on, as an editor shows it; for Parquet the row; None: the whole file.
        problem: What is wrong.
        fix: What to do about it.
    """

    def __init__(self, path: Path, line: int | None, problem: str, fix: str) -> None:
        """The message reads ``path, line N: problem. Fix: fix``."""
        place = f"{path}" if line is None else f"{path}, line {line}"
        super().__init__(f"{place}: {problem}. Fix: {fix}.")
        self.path = path
        self.line = line
        self.problem = problem
        self.fix = fix


class DataUnavailableError(DataError):
    """A dataset that none of its sources could give.

    Attributes:
        name: The dataset.
        attempts: Each source that was tried, with the reason why it failed.
        fix: What to do about it.
    """

    def __init__(self, name: str, attempts: Sequence[tuple[str, str]], fix: str) -> None:
        """The message lists the attempts, one a line, and the fix."""
        tried = "".join(f"\n  - {source}: {reason}" for source, reason in attempts)
        super().__init__(f"{name} is not available. Tried:{tried}\nFix: {fix}.")
        self.name = name
        self.attempts = tuple(attempts)
        self.fix = fix
