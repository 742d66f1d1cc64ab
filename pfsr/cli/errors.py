"""Errors that the user can fix, as one line on stderr."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import typer

CommandFunction = TypeVar("CommandFunction", bound=Callable[..., Any])


def plain_errors(
    expected_types: Callable[[], tuple[type[Exception], ...]],
) -> Callable[[CommandFunction], CommandFunction]:
    """A decorator: errors that name their own fix become one line and exit status 2.

    Args:
        expected_types: Returns the types of these errors. Called when an error occurs, so that
            their modules are not imported before.
    """

    def decorate(command: CommandFunction) -> CommandFunction:
        @functools.wraps(command)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            try:
                return command(*args, **kwargs)
            except (ValueError, RuntimeError, OSError) as error:
                if not isinstance(error, expected_types()):
                    raise
                typer.echo(f"error: {error_text(error)}", err=True)
                raise typer.Exit(2) from None

        return wrapped  # type: ignore[return-value]

    return decorate


def error_text(error: Exception) -> str:
    """The message of an error; those of the operating system get the fix that they lack."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    return (
        f"{error.filename}: {error.strerror}. Fix: give a path that is right, and that you may "
        f"read and write."
    )


def core_errors() -> tuple[type[Exception], ...]:
    """Errors of the core that name their own fix, and those of files."""
    from pfsr_core.data.errors import DataError
    from pfsr_core.evaluation.ranking import DivergedError
    from pfsr_core.runs.files import RunError
    from pfsr_core.runs.item_map import ItemMapError
    from pfsr_core.serving.served_model import RecommendationError
    from pfsr_core.serving.sqlite_file import NodeStoreError
    from pfsr_core.settings.fields import SettingsError

    error_types = (DataError, SettingsError, NodeStoreError, RecommendationError, RunError, OSError)
    return (*error_types, ItemMapError, DivergedError)


def deployment_errors() -> tuple[type[Exception], ...]:
    """Errors of ``pfsr deploy`` and of the connection probe, and those of files."""
    from pfsr.deploy.flower_commands import DeploymentError

    return (DeploymentError, OSError)
