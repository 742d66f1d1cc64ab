"""Figures of style: how long functions are, how names read, how many arguments are positional.

Run ``python -m tests.style.measure`` for the report. :mod:`tests.style.test_bars` compares it with
``bars.json`` and fails only where a figure has become worse than recorded; ``--record`` writes the
present figures there. It is a report and a ratchet, no gate on taste.

Definitions:
    function length    lines from ``def`` to the last statement, docstring included
    bound names        parameters, assignment and loop targets, every place where one is bound;
                       ``self``, ``cls`` and names of underscores alone aside
    two words          at least one inner underscore (``user_rows``) or inner capital (``UserRows``)
    positional         parameters that a caller may pass by position, ``self`` and ``cls`` aside;
                       commands of the command line, whose parameters typer names, aside
    repeated public    public top-level names that two modules of one package level both define
"""

from __future__ import annotations

import ast
import json
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pfsr", "pfsr_core", "server_app", "client_app")
BARS = Path(__file__).with_name("bars.json")
MOST_POSITIONAL = 5

Function = ast.FunctionDef | ast.AsyncFunctionDef


def source_files() -> list[Path]:
    """The modules of the product, sorted."""
    return sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def functions_of(tree: ast.AST) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def function_length(function: Function) -> int:
    """Lines from ``def`` to the last statement."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def bound_names(tree: ast.AST) -> list[str]:
    """Names of parameters and variables, once for every place that binds one."""
    parameters = [node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)]
    variables = [
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
    plain = (name.strip("_") for name in (*parameters, *variables))
    return [name for name in plain if name and name not in ("self", "cls")]


def has_two_words(name: str) -> bool:
    return "_" in name or re.search(r"[a-z0-9][A-Z]", name) is not None


def positional_count(function: Function) -> int:
    names = [arg.arg for arg in (*function.args.posonlyargs, *function.args.args)]
    return len([name for name in names if name not in ("self", "cls")])


def is_command(function: Function) -> bool:
    """Whether a decorator makes it a command of the command line."""
    return any(".command" in ast.unparse(one) for one in function.decorator_list)


def public_names(tree: ast.Module) -> Iterator[str]:
    """Public functions, classes and constants of a module's top level."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            continue
        yield from (name for name in names if not name.startswith("_"))


def repeated_names(trees: Mapping[Path, ast.Module]) -> dict[str, list[str]]:
    """Public names by "package: name" that several of its modules define."""
    places: dict[str, list[str]] = defaultdict(list)
    for path, tree in trees.items():
        package = ".".join(path.relative_to(ROOT).parts[:-1])
        for name in set(public_names(tree)):
            places[f"{package}: {name}"].append(path.stem)
    return {name: sorted(found) for name, found in places.items() if len(found) > 1}


def many_positional(trees: Mapping[Path, ast.Module]) -> list[str]:
    """Functions with more than MOST_POSITIONAL positional parameters, with their place."""
    return [
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name} ({positional_count(function)})"
        for path, tree in trees.items()
        for function in functions_of(tree)
        if positional_count(function) > MOST_POSITIONAL and not is_command(function)
    ]


def measure() -> dict[str, object]:
    """All figures of the product's packages by name."""
    trees = {path: ast.parse(path.read_text("utf-8")) for path in source_files()}
    lengths = sorted(function_length(one) for tree in trees.values() for one in functions_of(tree))
    names = [name for tree in trees.values() for name in bound_names(tree)]
    two = sum(has_two_words(name) for name in names)
    return {
        "functions": len(lengths),
        "function-lines-median": statistics.median(lengths),
        "function-lines-p90": lengths[int(0.9 * len(lengths))],
        "two-word-names-percent": round(100 * two / len(names), 1),
        "repeated-public-names": repeated_names(trees),
        "many-positional": many_positional(trees),
    }


def main() -> int:
    figures = measure()
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    if "--record" in sys.argv[1:]:
        kept = {
            name: len(value) if isinstance(value, dict | list) else value
            for name, value in figures.items()
            if name != "functions"
        }
        BARS.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
