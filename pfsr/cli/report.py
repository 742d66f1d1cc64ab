"""``pfsr report``: the report and the final table of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfsr.cli.errors import core_errors, plain_errors


@plain_errors(core_errors)
def report(
    run: Annotated[Path, typer.Argument()],
) -> None:
    """Write the report of a run again and print its final table; also during the run.

    RUN is the directory of a run.

    Example: `pfsr report runs/pfsr-20250131-120000`
    """
    from pfsr_core.reports.page import write_report
    from pfsr_core.reports.text_table import final_table

    report_path = write_report(run)
    typer.echo(final_table(run))
    typer.echo(f"report: {report_path}")
