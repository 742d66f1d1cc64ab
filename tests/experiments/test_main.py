"""The list of experiments is complete, and each of them says what it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[2] / "experiments"


def test_every_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    runnable = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for path in ROOT.rglob("*.py")
        if 'if __name__ == "__main__":' in path.read_text("utf-8")
    }
    assert runnable - {"__main__"} == set(COMMANDS)
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(f"python -m experiments.{name} " in said for name in COMMANDS)
