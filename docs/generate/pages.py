"""The pages of the site that no one writes by hand: which there are, and how each is made.

:func:`generated` is called by the MkDocs hook in ``hooks.py``; a test of the documents uses
:func:`generated_names` to know where a link may lead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import api
import cli
import files

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

INCLUDED = {
    "guides/containers.md": "docker/README.md",
    "reference/kernels.md": "kernels/README.md",
    "contributing.md": "CONTRIBUTING.md",
}
"""Pages of the site that are documents of the repository: page -> file."""

SINGLE: Mapping[str, Callable[[], str]] = {
    "reference/cli.md": cli.page,
    "reference/files.md": lambda: files.page(ROOT),
}


def generated() -> dict[str, str]:
    """The text of every generated page by its path below ``docs``."""
    return {
        **{name: make() for name, make in SINGLE.items()},
        **api.pages(ROOT),
        **{name: included(name, source) for name, source in INCLUDED.items()},
    }


def generated_names() -> set[str]:
    """The paths below ``docs`` of the generated pages; makes none of them."""
    return {*SINGLE, *INCLUDED, *api.pages(ROOT)}


def included(page: str, source: str) -> str:
    """A document of the repository with its links as they are seen from ``page``.

    Links into ``docs`` and to other included documents stay links; what is not on the site, such
    as a recipe, becomes its text.
    """
    place = (ROOT / source).parent

    def rebased(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, hash_, anchor = target.partition("#")
        on_site = _on_site((place / path).resolve())
        if on_site is None:
            return text
        up = "../" * page.count("/")
        return f"[{text}]({up}{on_site}{hash_}{anchor})"

    return re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", rebased, (ROOT / source).read_text("utf-8"))


def _on_site(path: Path) -> str | None:
    """Where a file of the repository is found on the site, or None."""
    pages = {(ROOT / source).resolve(): page for page, source in INCLUDED.items()}
    pages[ROOT / "ARCHITECTURE.md"] = "concepts/architecture.md"
    pages[ROOT / "CHANGELOG.md"] = "changelog.md"
    pages[ROOT / "README.md"] = "index.md"
    if path in pages:
        return pages[path]
    return path.relative_to(DOCS).as_posix() if path.is_relative_to(DOCS) else None
