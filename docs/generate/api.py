"""API pages, one a package: mkdocstrings renders the modules from their source."""

from __future__ import annotations

from pathlib import Path

import files

LIBRARIES = ("pfsr", "pfsr_core")
"""Packages that are imported by users; each package below them gets a page."""


def pages(root: Path) -> dict[str, str]:
    """The text of each API page by its path below ``docs``."""
    return {_name(package, root): _page(package, root) for package in _packages(root)}


def titles(root: Path) -> dict[str, str]:
    """Title in the navigation by path below ``docs``, in the order of the navigation."""
    return {_name(package, root): _dotted(package, root) for package in _packages(root)}


def _packages(root: Path) -> list[Path]:
    return [
        package
        for package in files.packages(root)
        if package.relative_to(root).parts[0] in LIBRARIES and _entries(package, root)
    ]


def _name(package: Path, root: Path) -> str:
    return f"reference/api/{_dotted(package, root)}.md"


def _dotted(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts)


def _page(package: Path, root: Path) -> str:
    title = _dotted(package, root)
    return f"# {title}\n\n{files.summary(package / '__init__.py')}\n\n{_entries(package, root)}"


def _entries(package: Path, root: Path) -> str:
    """What mkdocstrings is asked for: the package's own names, then its modules."""
    face = f"::: {_dotted(package, root)}\n" if package == root / "pfsr" else ""
    named = [_dotted(file, root) for file in files.modules(package)]
    return face + "".join(f"\n::: {name}\n" for name in named)
