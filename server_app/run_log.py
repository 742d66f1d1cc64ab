"""A run's directory and its voice: files that are written as it goes, and progress lines."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfsr_core.assembly.settings import Settings, flat_settings
from pfsr_core.data.vocabulary import save_vocabulary
from pfsr_core.evaluation.metrics.registry import FILTERED, headline_metrics
from pfsr_core.files import append_line, write_atomically
from pfsr_core.runs.environment import environment
from pfsr_core.runs.files import new_directories
from pfsr_core.settings.fields import SettingsError, Value
from pfsr_core.settings.sections import runs_directory
from server_app.checkpoints import save_model

MAY_CHANGE = (  # settings that a resumed run may have otherwise
    "run.resume",
    "run.directory",
    "federation.rounds",
    "federation.round-timeout",
    "federation.start-timeout",
)

logger = logging.getLogger("pfsr")


@dataclass(frozen=True)
class RunLog:
    """The directory of the run ``run_id``."""

    directory: Path

    @property
    def run_id(self) -> str:
        return self.directory.name

    def path(self, name: str) -> Path:
        return self.directory / name

    def write(self, name: str, content: object) -> None:
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.path(name), text.encode())

    def read(self, name: str) -> Any:
        """What :meth:`write` wrote, or None."""
        path = self.path(name)
        return json.loads(path.read_text("utf-8")) if path.is_file() else None

    def add_round(self, line: Mapping[str, Any]) -> None:
        append_line(self.path("metrics.jsonl"), line)

    def forget_rounds(self, algorithm: str, first: int) -> None:
        """Removes the lines of ``algorithm`` from round ``first`` on: they are written again."""
        path = self.path("metrics.jsonl")
        text = path.read_text("utf-8") if path.is_file() else ""
        kept = [line for line in text.splitlines(True) if _before(line, algorithm, first)]
        write_atomically(path, "".join(kept).encode())


def open_run(settings: Settings) -> RunLog:
    """A new run's directory, or that of the run to resume. Raises SettingsError."""
    if not settings.run.resume:
        return _new(settings)
    root = runs_directory(settings.run).absolute()
    log = RunLog(root / settings.run.resume)
    before: dict[str, Value] | None = log.read("config.json")
    if before is None:
        raise SettingsError(
            f"run.resume = {settings.run.resume!r}: {log.directory} is no run. "
            f"Fix: give the name of a directory in {root}, and the same run.directory."
        )
    _check_same(before, flat_settings(settings))
    return log


def write_model(
    log: RunLog, name: str, params: Any, facts: Mapping[str, Any], item_ids: tuple[str, ...]
) -> None:
    """The shared model under ``name``; with its vocabulary where it holds an item table."""
    save_model(log.path(name), params, facts)
    if item_ids:
        save_vocabulary(log.path(name), item_ids)


def speak() -> None:
    """Lets progress lines through to standard output, which Flower streams."""
    logger.handlers.clear()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def say(text: str) -> None:
    logger.info(text)


def progress_line(line: Mapping[str, Any], rounds: int, left: float) -> str:
    """``round 3/24  loss 5.93  valid HR@10 .112 ...``; the figures are of the round before."""
    parts = [f"{line['algorithm']}  round {line['round']}/{rounds}"]
    if line.get("train-loss") is not None:
        parts.append(f"loss {line['train-loss']:.3f}")
    figures = [
        f"{metric.title} {line[key]:.4f}".replace(" 0.", " .")
        for metric in headline_metrics()
        if line.get(key := f"valid/{FILTERED}/{metric.name}") is not None
    ]
    if figures:
        parts += [f"valid {figures[0]}", *figures[1:]]
    parts.append(f"{line['seconds']:.1f} s")
    parts.append(f"{line['bytes-up'] / 1e6:.2f} MB up, {line['bytes-down'] / 1e6:.2f} MB down")
    parts.append(f"about {_duration(left)} left")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _new(settings: Settings) -> RunLog:
    for directory in new_directories(settings.run):
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        log = RunLog(directory.absolute())
        log.write("environment.json", environment())
        log.write("config.json", flat_settings(settings))
        return log
    raise SettingsError("this second has a thousand runs already. Fix: choose another run.name")


def _check_same(before: Mapping[str, Value], now: Mapping[str, Value]) -> None:
    changed = [
        f"{key} (was {before.get(key)!r}, is {now.get(key)!r})"
        for key in sorted({*before, *now})
        if key not in MAY_CHANGE and before.get(key) != now.get(key)
    ]
    if changed:
        raise SettingsError(
            f"a resumed run continues with its own settings, but these differ: "
            f"{', '.join(changed)}. Fix: give the same recipe and overrides as before."
        )


def _before(line: str, algorithm: str, first: int) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False  # half a line, from a process that was killed
    return bool(entry["algorithm"] != algorithm or entry["round"] < first)
