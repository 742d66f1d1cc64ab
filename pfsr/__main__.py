"""``python -m pfsr`` is the command ``pfsr``."""

from pfsr.cli.main import app

app(prog_name="pfsr")
