"""Commands and options of earlier versions: refused with the words that replace them."""

from __future__ import annotations

from typing import NoReturn

import click
import typer
from typer.core import TyperCommand, TyperGroup

REPLACED_COMMANDS = {
    "simulate": "pfsr run --local",
    "item-views": "pfsr item-map",
    "bench": "python -m benchmarks",
}
REPLACED_OPTIONS = {
    "--recipe": "give the recipe's name or path as the first word",
    "-r": "give the recipe's name or path as the first word",
    "--set": "write KEY=VALUE alone",
    "-s": "write KEY=VALUE alone",
    "--run-config": "write KEY=VALUE alone",
}


class CurrentCommands(TyperGroup):
    """The group of all commands, which names what became of an old one."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command ``cmd_name``; exit status 2 for one of REPLACED_COMMANDS."""
        if cmd_name in REPLACED_COMMANDS:
            _refuse(
                f"pfsr {cmd_name} is {REPLACED_COMMANDS[cmd_name]} now", REPLACED_COMMANDS[cmd_name]
            )
        return super().get_command(ctx, cmd_name)


class TrainingCommand(TyperCommand):
    """A command of the form ``[RECIPE] [KEY=VALUE]...``, which had options for these once."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads the command line; exit status 2 for one of REPLACED_OPTIONS."""
        for word in args:
            option_name = word.partition("=")[0]
            if option_name in REPLACED_OPTIONS:
                example_command = f"{ctx.command_path} pfsr federation.rounds=5"
                _refuse(
                    f"there is no option {option_name}: {REPLACED_OPTIONS[option_name]}",
                    example_command,
                )
        return super().parse_args(ctx, args)


def _refuse(problem: str, fix: str) -> NoReturn:
    typer.echo(f"error: {problem}. Fix: {fix}", err=True)
    raise typer.Exit(2)
