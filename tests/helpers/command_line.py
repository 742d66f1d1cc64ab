"""``pfsr`` as a user types it, in this process."""

from __future__ import annotations

from click.testing import Result
from typer.testing import CliRunner

from pfsr.cli.main import app


def pfsr(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "140"})


def succeed(*words: object) -> str:
    result = pfsr(*words)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def fail(*words: object) -> str:
    """What a mistake says: nothing on stdout, no traceback, status 2."""
    result = pfsr(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")
    return str(result.stderr)
