"""The list of source files, each with the first sentence of its module docstring."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("pfsr", "server_app", "client_app", "pfsr_core", "experiments", "benchmarks")
"""Top-level packages in the order in which they are listed."""


def page(root: Path) -> str:
    """The page ``reference/files.md``: one section per package, one row per module."""
    parts = ["# Source files\n", "Every module with the first line of its docstring.\n"]
    for package in packages(root):
        name = package.relative_to(root).as_posix()
        purpose = summary(package / "__init__.py")
        parts += [f"## `{name}/`\n", *([f"{purpose}\n"] if purpose else [])]
        rows = [f"| `{file.name}` | {summary(file)} |" for file in modules(package)]
        if rows:
            parts += ["| file | contents |\n|---|---|", *rows, ""]
    return "\n".join(parts)


def packages(root: Path) -> Iterator[Path]:
    """Every directory with modules below the top-level packages that are there."""
    for name in PACKAGES:
        top = root / name
        if top.is_dir():
            yield from sorted({top, *(path.parent for path in top.rglob("*.py"))})


def modules(package: Path) -> list[Path]:
    """The modules that lie in ``package`` itself, without ``__init__``."""
    return sorted(path for path in package.glob("*.py") if path.name != "__init__.py")


def summary(file: Path) -> str:
    """The first line of the module docstring, ready for a table cell; empty without one."""
    text = (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "") if file.is_file() else ""
    return text.partition("\n")[0].replace("|", "\\|")
