"""The figures of style are no worse than those recorded in ``bars.json``.

After an improvement: ``python -m tests.style.measure --record``.
"""

from __future__ import annotations

import ast
import json

import pytest

from tests.style import measure
from tests.style.measure import BARS

HIGHER_IS_BETTER = {"two-word-names-percent"}
WITHIN = {"function-lines-median": (5, 12), "function-lines-p90": (0, 35)}
"""Figures that are good within a range; the others may not grow."""
SLACK = {"two-word-names-percent": 0.5}


@pytest.fixture(scope="module")
def figures():
    return measure.measure()


@pytest.mark.parametrize("name", json.loads(BARS.read_text("utf-8")))
def test_no_figure_is_worse_than_recorded(figures, name):
    recorded = json.loads(BARS.read_text("utf-8"))[name]
    found = figures[name]
    listed = found if isinstance(found, dict | list) else ""
    size = len(found) if isinstance(found, dict | list) else found
    if name in WITHIN:
        low, high = WITHIN[name]
        assert low <= size <= high
    elif name in HIGHER_IS_BETTER:
        assert size >= recorded - SLACK[name]
    else:
        assert size <= recorded, listed


def test_a_function_is_as_long_as_its_lines():
    tree = ast.parse("@cached\ndef one(a):\n    b = a\n\n    return b\n")
    assert measure.function_length(measure.functions_of(tree)[0]) == 4


def test_names_are_counted_where_they_are_bound():
    tree = ast.parse(
        "def f(self, user_rows, _):\n    x = y = user_rows\n    for x in y:\n        pass"
    )
    assert sorted(measure.bound_names(tree)) == ["user_rows", "x", "x", "y"]


@pytest.mark.parametrize(
    ("name", "two"), [("user_rows", True), ("UserRows", True), ("rows", False), ("HTML", False)]
)
def test_two_words(name, two):
    assert measure.has_two_words(name) is two


def test_positional_parameters_are_those_a_caller_may_pass_by_position():
    tree = ast.parse("def f(self, a, b=1, *rest, c, d=2, **more): ...")
    assert measure.positional_count(measure.functions_of(tree)[0]) == 2
