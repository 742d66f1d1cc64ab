"""MkDocs hook: adds the generated pages to the site and fills the API section of the navigation."""

from __future__ import annotations

import re
from typing import Any

import api
import pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

SETTINGS = "reference/settings.md"
SHORT_CELL = re.compile(r"<td>(?=[^<]{1,16}</td>)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Checks that the settings page is there and lists the API pages in the navigation."""
    if not (pages.DOCS / SETTINGS).is_file():
        raise PluginError(
            f"docs/{SETTINGS} is missing. Fix: write it with `pfsr settings --write`."
        )
    _fill(config.nav or [], [{title: name} for name, title in api.titles(pages.ROOT).items()])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made from the source code and from the repository's documents."""
    for name, text in pages.generated().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Marks short cells of tables, which the style sheet keeps on one line."""
    del page, config, files
    return SHORT_CELL.sub('<td class="short">', html)


def _fill(nav: list[Any], entries: list[dict[str, str]]) -> None:
    """Puts ``entries`` under the section "API", wherever it is in the navigation."""
    for item in nav:
        for title, below in item.items() if isinstance(item, dict) else ():
            if title == "API":
                item[title] = entries
            elif isinstance(below, list):
                _fill(below, entries)
