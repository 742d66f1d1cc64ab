"""The run directory, whose files are written as the run goes, and the progress log."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors

from pfsr_core.assembly.settings import Settings, flat_settings
from pfsr_core.data.vocabulary import save_vocabulary
from pfsr_core.files import append_line, write_atomically
from pfsr_core.params import Params
from pfsr_core.runs.environment import environment
from pfsr_core.runs.files import new_directories
from pfsr_core.runs.results import progress_texts
from pfsr_core.settings.fields import SettingsError, Value
from pfsr_core.settings.sections import runs_directory

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
        """The id of the run is the name of its directory."""
        return self.directory.name

    def path(self, file_name: str) -> Path:
        """The path of a file of the run."""
        return self.directory / file_name

    def write(self, file_name: str, content: object) -> None:
        """Writes a JSON file atomically."""
        json_text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.path(file_name), json_text.encode())

    def read(self, file_name: str) -> Any:
        """What :meth:`write` wrote, or None."""
        file_path = self.path(file_name)
        return json.loads(file_path.read_text("utf-8")) if file_path.is_file() else None

    def add_round(self, metrics_line: Mapping[str, Any]) -> None:
        """Appends a completed record to metrics.jsonl."""
        append_line(self.path("metrics.jsonl"), metrics_line)

    def forget_rounds(self, algorithm_name: str, first_round: int) -> None:
        """Removes an algorithm's lines from ``first_round`` on: they are written again."""
        metrics_path = self.path("metrics.jsonl")
        metrics_text = metrics_path.read_text("utf-8") if metrics_path.is_file() else ""
        kept_lines = [
            metrics_line
            for metrics_line in metrics_text.splitlines(True)
            if _before(metrics_line, algorithm_name, first_round)
        ]
        write_atomically(metrics_path, "".join(kept_lines).encode())


def open_run(settings: Settings) -> RunLog:
    """A new run's directory, or that of the run to resume. Raises SettingsError."""
    if not settings.run.resume:
        return _new(settings)
    runs_root = runs_directory(settings.run).absolute()
    run_log = RunLog(runs_root / settings.run.resume)
    recorded_settings: dict[str, Value] | None = run_log.read("config.json")
    if recorded_settings is None:
        raise SettingsError(
            f"run.resume = {settings.run.resume!r}: {run_log.directory} is no run. "
            f"Fix: give the name of a directory in {runs_root}, and the same run.directory."
        )
    _check_same(recorded_settings, flat_settings(settings))
    return run_log


def write_model(
    run_log: RunLog,
    model_name: str,
    shared_params: Params,
    model_config: Mapping[str, Any],
    item_ids: tuple[str, ...],
) -> None:
    """Writes a shared model below the run's directory.

    Args:
        run_log: the run.
        model_name: the directory of ``model.safetensors`` and ``config.json``.
        shared_params: the shared parameters.
        model_config: what config.json says of them.
        item_ids: the vocabulary of an item table; empty where the model has none.
    """
    model_directory = run_log.path(model_name)
    tensors = {tensor_name: tensor.contiguous() for tensor_name, tensor in shared_params.items()}
    write_atomically(model_directory / "model.safetensors", save_tensors(tensors))
    write_atomically(model_directory / "config.json", json.dumps(model_config, indent=1).encode())
    if item_ids:
        save_vocabulary(model_directory, item_ids)


def configure_logging() -> None:
    """Lets progress lines through to standard output, which Flower streams."""
    logger.handlers.clear()
    stdout_handler = logging.StreamHandler(sys.stdout)
    stdout_handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(stdout_handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def progress_line(metrics_line: Mapping[str, Any], num_rounds: int, seconds_left: float) -> str:
    """``round 3/24  loss 5.93  valid HR@10 .112 ...``; the figures are of the round before."""
    position_texts, metric_texts = progress_texts(metrics_line, num_rounds)
    line_parts = [
        *position_texts,
        *(metric_text.replace(" 0.", " .") for metric_text in metric_texts),
        f"{metrics_line['seconds']:.1f} s",
        f"{metrics_line['bytes-up'] / 1e6:.2f} MB up, "
        f"{metrics_line['bytes-down'] / 1e6:.2f} MB down",
        f"about {_duration(seconds_left)} left",
    ]
    return "  ".join(line_parts)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _new(settings: Settings) -> RunLog:
    for run_directory in new_directories(settings.run):
        try:
            run_directory.mkdir(parents=True)
        except FileExistsError:
            continue
        run_log = RunLog(run_directory.absolute())
        run_log.write("environment.json", environment())
        run_log.write("config.json", flat_settings(settings))
        return run_log
    raise SettingsError("this second has a thousand runs already. Fix: choose another run.name")


def _check_same(
    recorded_settings: Mapping[str, Value], current_settings: Mapping[str, Value]
) -> None:
    changed_settings = [
        f"{setting_key} (was {recorded_settings.get(setting_key)!r}, "
        f"is {current_settings.get(setting_key)!r})"
        for setting_key in sorted({*recorded_settings, *current_settings})
        if setting_key not in MAY_CHANGE
        and recorded_settings.get(setting_key) != current_settings.get(setting_key)
    ]
    if changed_settings:
        raise SettingsError(
            f"a resumed run continues with its own settings, but these differ: "
            f"{', '.join(changed_settings)}. Fix: give the same recipe and overrides as before."
        )


def _before(metrics_line: str, algorithm_name: str, first_round: int) -> bool:
    try:
        round_entry = json.loads(metrics_line)
    except ValueError:
        return False  # half a line, from a process that was killed
    return bool(round_entry["algorithm"] != algorithm_name or round_entry["round"] < first_round)
