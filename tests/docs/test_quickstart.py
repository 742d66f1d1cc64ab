"""The notebook of the documentation: valid, without outputs, and it runs from top to bottom."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "quickstart.ipynb"


def code_cells() -> list[Any]:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def run_cell(source: str, namespace: dict[str, Any]) -> Any:
    """Runs a cell as a notebook does: the value of a last expression is shown."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), namespace)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), namespace)


def test_no_output_of_one_machine_is_kept() -> None:
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code_cells())


def test_it_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    shown = [run_cell(cell.source, namespace) for cell in code_cells()]
    assert shown[0].columns.tolist() == ["user", "item", "timestamp", "shop", "title"]
    assert len(shown[1]) == 5 and namespace["model"].clients == ["shop-north", "shop-south"]
    assert shown[2].attrs["client"] == "shop-south"
    assert {"pfsr", "fed-avg", "local-only", "popularity"} <= set(shown[4].index)
    assert shown[-1] is True, "a saved model answers alike"
