"""``python -m benchmarks``: what cannot be done is said before minutes of timing."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import __main__, command


@pytest.fixture(autouse=True)
def _no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_measure", lambda _name: pytest.fail("timed before it looked"))


def test_a_path_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert __main__.main(["scan", "--out", str(tmp_path / "file")]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path / 'file'}") and "Fix: give a path" in message


def test_an_unknown_benchmark_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["scam"]) == 2
    assert "no benchmark named scam. There are: scan, encoder" in capsys.readouterr().err


def test_help_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        __main__.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in command.BENCHMARKS)
