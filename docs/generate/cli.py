"""The command line reference, read from the commands themselves."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from typing import Any

import typer.main
from click import Command, Context, Group, Option, Parameter

APP = ("pfsr.cli.main", "app")


def page() -> str:
    """The page ``reference/cli.md``: a section a command, with its options as a table."""
    module, name = APP
    command = typer.main.get_command(getattr(import_module(module), name))
    parts = ["# Command line\n", _text(command)]
    return "\n".join([*parts, *_commands(command, "pfsr", 2)])


def _commands(command: Command, path: str, level: int) -> list[str]:
    if not isinstance(command, Group):
        return []
    parts: list[str] = []
    context = Context(command)
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        if below is None or below.hidden:
            continue
        called = f"{path} {name}"
        parts += [f"{'#' * level} `{called}`\n", _text(below)]
        if not isinstance(below, Group):
            parts += [f"```\n{_usage(below, called)}\n```\n", _table(below)]
        parts += _commands(below, called, level + 1)
    return parts


def _usage(command: Command, called: str) -> str:
    pieces = command.collect_usage_pieces(Context(command, info_name=called))
    return " ".join([called, *pieces])


def _text(command: Command) -> str:
    """The help text as Markdown: examples in their code, lists as lists."""
    return inspect.cleandoc(command.help or "").replace("\b", "") + "\n"


def _table(command: Command) -> str:
    rows = [_row(item) for item in command.params if isinstance(item, Option) and not item.hidden]
    return "\n".join(["| option | default | meaning |\n|---|---|---|", *rows, ""]) if rows else ""


def _row(option: Option) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    value = "" if option.is_flag else f" `{_metavar(option)}`"
    return f"| {names}{value} | {_default(option)} | {_cell(option.help or '')} |"


def _metavar(option: Parameter) -> str:
    return option.metavar or option.type.name.upper()


def _default(option: Option) -> str:
    value: Any = option.default
    if option.required:
        return "required"
    plain = value is not None and not callable(value) and re.fullmatch(r"[\w./:-]+", str(value))
    return f"`{value}`" if plain and not option.is_flag else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
