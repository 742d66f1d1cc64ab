"""What is written from the declarations of settings: a part of pyproject.toml, a page of the docs.

Flower refuses keys of a run config that ``[tool.flwr.app.config]`` of the app does not list, so
every setting stands there with its default. The page says what each one means.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pfsr_core.assembly.moved_keys import MOVED_KEYS
from pfsr_core.assembly.settings import DECLARATIONS, Settings
from pfsr_core.files import write_atomically
from pfsr_core.settings.fields import Declaration, SettingsError, section_kinds
from pfsr_core.settings.recipes import toml_value

PYPROJECT = "pyproject.toml"
PAGE = "docs/reference/settings.md"
BEGIN = "# Written by `pfsr settings --write`, from here\n"
END = "# to here.\n"
PAGE_HEAD = """\
<!-- Written by `pfsr settings --write`; change the declarations in the code instead. -->

# Settings

A setting is written in a recipe, a TOML file with a table for each section, or as `key=value` on
the command line, where the key is the table's name and the setting's with a dot between them:

```toml
[algorithm.pfsr]
rho = 0.3
```

```
pfsr run recipes/pfsr.toml algorithm.pfsr.rho=0.3
```

Settings that a run would ignore, and those that do not go together, are refused. A setting is
declared in the module that reads it, and this page is written from the declarations.
"""


def section_declarations() -> dict[str, dict[str, Declaration]]:
    """The settings by section and key; the sections in the order of the run config."""
    tables: dict[str, dict[str, Declaration]] = {}
    for path, declared in DECLARATIONS.items():
        table, _, key = path.rpartition(".")
        tables.setdefault(table, {})[key] = declared
    return tables


def run_config() -> str:
    """The tables of ``[tool.flwr.app.config]``."""
    return "\n".join(
        _table(f"tool.flwr.app.config.{name}", {k: one.default for k, one in table.items()})
        for name, table in section_declarations().items()
    )


def settings_page() -> str:
    """The reference page of all settings, in Markdown."""
    kinds = section_kinds(Settings)
    parts = [PAGE_HEAD]
    for name, table in section_declarations().items():
        about = (kinds[name].__doc__ or "").strip().split("\n\n")[0]
        rows = [_row(key, declared) for key, declared in table.items()]
        head = "| key | default | meaning | allowed |\n| --- | --- | --- | --- |\n"
        parts.append(f"## {name}\n\n{' '.join(about.split())}\n\n{head}" + "".join(rows))
    moved = "".join(f"| `{old}` | `{new}` |\n" for old, new in MOVED_KEYS.items())
    parts.append(
        "## Former keys\n\nThese are refused; the error names the key of today.\n\n"
        f"| was | is |\n| --- | --- |\n{moved}"
    )
    return "\n".join(parts)


def settings_text(prefix: str = "") -> str:
    """All settings whose key begins with ``prefix``, for the terminal. Raises SettingsError."""
    chosen = {key: one for key, one in DECLARATIONS.items() if key.startswith(prefix)}
    if not chosen:
        sections = ", ".join(section_declarations())
        raise SettingsError(f"no setting begins with {prefix!r}. Fix: choose among {sections}.")
    return "\n".join(
        f"{key} = {toml_value(one.default)}\n    {one.help}{_allowed_note(one)}"
        for key, one in chosen.items()
    )


def generated_files(root: Path) -> dict[Path, str]:
    """What the files of a checkout should hold. Raises SettingsError where it is none."""
    pyproject = root / PYPROJECT
    before = pyproject.read_text("utf-8") if pyproject.is_file() else ""
    head, begin, rest = before.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SettingsError(
            f"{pyproject}: no such file, or without the lines between which the settings are "
            f"written. Fix: run this in a checkout of the project."
        )
    text = f"{head}{BEGIN}\n{run_config()}\n{END}{tail}"
    return {pyproject: text, root / PAGE: settings_page()}


def stale_files(root: Path) -> list[Path]:
    """The generated files of a checkout that are not as they should be."""
    return [
        path
        for path, text in generated_files(root).items()
        if not path.is_file() or path.read_text("utf-8") != text
    ]


def write_files(root: Path) -> list[Path]:
    """Writes the generated files that are stale, and returns them."""
    stale, texts = stale_files(root), generated_files(root)
    for path in stale:
        write_atomically(path, texts[path].encode())
    return stale


def _table(name: str, values: Mapping[str, bool | int | float | str]) -> str:
    lines = "".join(f"{key} = {toml_value(value)}\n" for key, value in values.items())
    return f"[{name}]\n{lines}"


def _row(key: str, declared: Declaration) -> str:
    default = toml_value(declared.default)
    meaning = declared.help.replace("|", "\\|").replace("<", "&lt;")
    return f"| `{key}` | `{default}` | {meaning} | {_allowed(declared)} |\n"


def _allowed(declared: Declaration) -> str:
    """The limits of a setting in words; its type where it has none."""
    low, high = declared.low, declared.high
    if declared.choices:
        return ", ".join(f"`{choice}`" for choice in declared.choices)
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    if low is not None:
        return f"at least {low:g}"
    return {bool: "`true`, `false`", str: "text"}.get(type(declared.default), "any number")


def _allowed_note(declared: Declaration) -> str:
    if isinstance(declared.default, bool) or (
        isinstance(declared.default, str) and not declared.choices
    ):
        return ""
    return f" [{_allowed(declared).replace('`', '')}]"
