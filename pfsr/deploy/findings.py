"""What a check found and how to fix it: for ``pfsr doctor`` and the connection probe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "missing"]


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis.

    Attributes:
        level: "ok", "note" (works without it) or "missing" (needed, or wrong).
        subject: What was looked at, such as "torch" or "certificate".
        found: What was seen.
        fix: How to get what is missing; "" where nothing is to be done.
    """

    level: Level
    subject: str
    found: str
    fix: str = ""
