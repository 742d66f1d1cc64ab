"""What is written from the declarations of settings: a part of pyproject.toml, a page of the docs.

Flower refuses keys of a run config that ``[tool.flwr.app.config]`` of the app does not list, so
every setting stands there with its default. The page says what each one means.
"""

from __future__ import annotations

from pathlib import Path

from pfsr_core.assembly.moved_keys import MOVED_KEYS
from pfsr_core.assembly.settings import DECLARATIONS, Settings
from pfsr_core.files import write_atomically
from pfsr_core.settings.fields import Declaration, SettingsError, section_kinds
from pfsr_core.settings.recipes import toml_value

PYPROJECT_FILE = "pyproject.toml"
SETTINGS_PAGE = "docs/reference/settings.md"
BEGIN_MARK = "# Written by `pfsr settings --write`, from here\n"
END_MARK = "# to here.\n"
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
    section_tables: dict[str, dict[str, Declaration]] = {}
    for setting_key, declared in DECLARATIONS.items():
        section_name, _, last_part = setting_key.rpartition(".")
        section_tables.setdefault(section_name, {})[last_part] = declared
    return section_tables


def run_config() -> str:
    """The tables of ``[tool.flwr.app.config]``."""
    return "\n".join(
        f"[tool.flwr.app.config.{section_name}]\n"
        + "".join(f"{key} = {toml_value(declared.default)}\n" for key, declared in table.items())
        for section_name, table in section_declarations().items()
    )


def settings_page() -> str:
    """The reference page of all settings, in Markdown."""
    section_types = section_kinds(Settings)
    page_parts = [PAGE_HEAD]
    for section_name, table in section_declarations().items():
        section_text = (section_types[section_name].__doc__ or "").strip().split("\n\n")[0]
        table_rows = [_row(last_part, declared) for last_part, declared in table.items()]
        table_head = "| key | default | meaning | allowed |\n| --- | --- | --- | --- |\n"
        page_parts.append(
            f"## {section_name}\n\n{' '.join(section_text.split())}\n\n{table_head}"
            + "".join(table_rows)
        )
    moved_rows = "".join(
        f"| `{old_key}` | `{new_key}` |\n" for old_key, new_key in MOVED_KEYS.items()
    )
    page_parts.append(
        "## Former keys\n\nThese are refused; the error names the key of today.\n\n"
        f"| was | is |\n| --- | --- |\n{moved_rows}"
    )
    return "\n".join(page_parts)


def settings_text(key_prefix: str = "") -> str:
    """All settings whose key begins with ``key_prefix``, for the terminal. Raises SettingsError."""
    chosen_settings = {
        key: declared for key, declared in DECLARATIONS.items() if key.startswith(key_prefix)
    }
    if not chosen_settings:
        section_names = ", ".join(section_declarations())
        raise SettingsError(
            f"no setting begins with {key_prefix!r}. Fix: choose among {section_names}."
        )
    return "\n".join(
        f"{key} = {toml_value(declared.default)}\n    {declared.help}{_allowed_note(declared)}"
        for key, declared in chosen_settings.items()
    )


def generated_files(checkout_root: Path) -> dict[Path, str]:
    """What the files of a checkout should hold. Raises SettingsError where it is none."""
    pyproject_path = checkout_root / PYPROJECT_FILE
    old_text = pyproject_path.read_text("utf-8") if pyproject_path.is_file() else ""
    head, begin_mark, after_begin = old_text.partition(BEGIN_MARK)
    _, end_mark, tail = after_begin.partition(END_MARK)
    if not begin_mark or not end_mark:
        raise SettingsError(
            f"{pyproject_path}: no such file, or without the lines between which the settings are "
            f"written. Fix: run this in a checkout of the project."
        )
    new_text = f"{head}{BEGIN_MARK}\n{run_config()}\n{END_MARK}{tail}"
    return {pyproject_path: new_text, checkout_root / SETTINGS_PAGE: settings_page()}


def stale_files(checkout_root: Path) -> list[Path]:
    """The generated files of a checkout that are not as they should be."""
    return list(_stale_texts(checkout_root))


def write_files(checkout_root: Path) -> list[Path]:
    """Writes the generated files that are stale, and returns them."""
    stale_texts = _stale_texts(checkout_root)
    for file_path, expected_text in stale_texts.items():
        write_atomically(file_path, expected_text.encode())
    return list(stale_texts)


def _stale_texts(checkout_root: Path) -> dict[Path, str]:
    """What each stale file should hold."""
    return {
        file_path: expected_text
        for file_path, expected_text in generated_files(checkout_root).items()
        if not file_path.is_file() or file_path.read_text("utf-8") != expected_text
    }


def _row(last_part: str, declared: Declaration) -> str:
    default_text = toml_value(declared.default)
    meaning = declared.help.replace("|", "\\|").replace("<", "&lt;")
    return f"| `{last_part}` | `{default_text}` | {meaning} | {_allowed(declared)} |\n"


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
