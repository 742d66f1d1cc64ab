"""``pfsr settings``: all settings, and the files that are generated from their declarations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pfsr.cli.errors import core_errors, plain_errors


def print_settings(key_prefix: str, write: bool, check: bool, echo: Callable[[str], None]) -> None:
    """Prints the settings whose keys begin with ``key_prefix``, or writes or checks the files.

    Args:
        key_prefix: A section, or any beginning of a key; empty: all settings.
        write: Write the stale files of the checkout in the working directory instead.
        check: Raise SettingsError where one of them is stale instead.
        echo: Prints a line.
    """
    from pfsr_core.assembly.pyproject_table import settings_text, stale_files, write_files
    from pfsr_core.settings.fields import SettingsError

    checkout_root = Path()
    if check:
        stale_paths = stale_files(checkout_root)
        if stale_paths:
            file_names = " and ".join(map(str, stale_paths))
            raise SettingsError(
                f"not as the settings are declared: {file_names}. Fix: run 'pfsr settings --write'."
            )
        echo("as the settings are declared")
    elif write:
        written_paths = write_files(checkout_root)
        echo("\n".join(f"wrote {file_path}" for file_path in written_paths) or "nothing to write")
    else:
        echo(settings_text(key_prefix))


@plain_errors(core_errors)
def list_settings(
    prefix: Annotated[
        str,
        typer.Argument(help="Section to list, e.g. train or algorithm.pfsr.", metavar="[SECTION]"),
    ] = "",
    write: Annotated[
        bool,
        typer.Option(
            "--write", help="Write them into pyproject.toml and docs/reference/settings.md."
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Fail when pyproject.toml or docs/reference/settings.md is stale."
        ),
    ] = False,
) -> None:
    """List the settings with their defaults, meanings and limits.

    `--write` and `--check` are for the two files of a checkout that are generated from them.

    Example: `pfsr settings algorithm.pfsr`
    """
    print_settings(prefix, write, check, typer.echo)
