"""The documents: links lead somewhere, and commands are understood as they are printed."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer.main
from click import Command, Context, Group

from pfsr.cli.main import app
from pfsr_core.assembly.settings import parse_settings
from pfsr_core.settings.recipes import load_recipe, parse_override

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("docker/*.md")])
SITE_ONLY = re.compile(
    r"docs/(reference/(api/.*|cli|files|settings|kernels)|guides/containers|contributing)\.md"
)
"""Pages that exist on the built site only; ``mkdocs build --strict`` checks links to them."""
RECIPES = sorted(ROOT.glob("recipes/*.toml"))


def blocks(text: str) -> list[str]:
    """Lines of the fenced blocks; a line that is continued is one."""
    found = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.M | re.S)
    return "\n".join(found).replace("\\\n", " ").splitlines()


def inline(text: str) -> list[str]:
    """What stands in backticks in the prose."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)
    return re.findall(r"`([^`\n]+)`", prose)


def comments(text: str) -> list[str]:
    """Lines of a recipe's comments; a line that is continued is one."""
    lines = [line[1:].strip() for line in text.splitlines() if line.startswith("#")]
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def commands(lines: list[str]) -> list[str]:
    """What the lines tell to type after ``pfsr``."""
    found = (re.search(r"(?:^|  |&& |[(\"])pfsr ([a-z].*)", line) for line in lines)
    return [match[1] for match in found if match]


TYPED = [
    (path.name, words)
    for paths, read in ((DOCUMENTS, blocks), (RECIPES, comments))
    for path in paths
    for words in commands(read(path.read_text("utf-8")))
]
NAMED = [(path.name, words) for path in DOCUMENTS for words in commands(inline(path.read_text()))]


def command_of(arguments: list[str]) -> tuple[Command, list[str]]:
    """The command that the first words name, and the words left."""
    command: Command = typer.main.get_command(app)
    while isinstance(command, Group) and arguments:
        name, *arguments = arguments
        found = command.get_command(Context(command), name)
        assert found is not None, f"no command {name!r}"
        command = found
    return command, arguments


def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8"))
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (path.parent / name).resolve() if name else path
        if SITE_ONLY.fullmatch(place.relative_to(ROOT).as_posix()):
            continue
        assert place.exists(), f"{path.name}: {target}"
        assert not anchor or anchor in anchors(place), f"{path.name}: {target}"


def test_the_documents_have_commands() -> None:
    assert len(TYPED) > 30 and len(NAMED) > 20


@pytest.mark.parametrize(("where", "words"), TYPED)
def test_a_command_of_a_block_is_understood_as_it_is_printed(where: str, words: str) -> None:
    command, arguments = command_of(shlex.split(words, comments=True))
    if isinstance(command, Group):
        return  # a group, as pfsr deploy, shows its commands
    parsed = command.make_context("pfsr", arguments)
    words: list[str] = parsed.params.get("settings") or []
    flat = dict(parse_override(word) for word in words if "=" in word)
    for recipe in (word for word in words if "=" not in word):
        flat = {**load_recipe(ROOT / "recipes" / f"{recipe}.toml"), **flat}
    parse_settings(flat)


@pytest.mark.parametrize(("where", "words"), NAMED)
def test_a_command_that_is_named_has_the_options_named_with_it(where: str, words: str) -> None:
    command, arguments = command_of(shlex.split(words))
    known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    assert {word for word in arguments if word.startswith("-")} <= known


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_modules_recipes_and_targets_that_are_named_are_there(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    text = path.read_text("utf-8")
    for line in [*blocks(text), *inline(text)]:
        for module in re.findall(
            r"python -m ((?:pfsr|server_app|client_app|experiments|benchmarks|tests)[\w.]*)", line
        ):
            assert importlib.util.find_spec(module), f"{path.name}: {line}"
        for recipe in re.findall(r"(?<![\w/])recipes/[\w-]+\.toml", line):
            assert (ROOT / recipe).is_file(), f"{path.name}: {line}"
        for target in re.findall(r"^make ([a-z-]+)", line):
            assert target in targets, f"{path.name}: {line}"
