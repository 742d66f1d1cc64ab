"""``pfsr settings``: what can be set, and the files that are written from the declarations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pfsr_core.assembly.pyproject_table import settings_text, stale_files, write_files
from pfsr_core.settings.fields import SettingsError


def print_settings(prefix: str, write: bool, check: bool, echo: Callable[[str], None]) -> None:
    """Prints the settings whose keys begin with ``prefix``, or sees to the written files.

    Args:
        prefix: A section, or any beginning of a key; empty: all settings.
        write: Write the stale files of the checkout in the working directory instead.
        check: Raise SettingsError where one of them is stale instead.
        echo: Prints a line.
    """
    root = Path()
    if check:
        stale = stale_files(root)
        if stale:
            names = " and ".join(map(str, stale))
            raise SettingsError(
                f"not as the settings are declared: {names}. Fix: run 'pfsr settings --write'."
            )
        echo("as the settings are declared")
    elif write:
        written = write_files(root)
        echo("\n".join(f"wrote {path}" for path in written) or "nothing to write")
    else:
        echo(settings_text(prefix))
