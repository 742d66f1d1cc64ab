from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfsr_core.federated.aggregation import (
    ReplySum,
    merge_replies,
    merge_sums,
    reply_problem,
)
from pfsr_core.federated.algorithm import Reply

SHAPES = {"a": (2,)}
SENT = {"a": torch.zeros(2)}


def reply(values: list[float], weight: float, **metrics: float) -> Reply:
    return Reply({"a": torch.tensor(values)}, weight, metrics, (weight,))


def test_mean_of_two_by_hand() -> None:
    merged = merge_replies([reply([0.0, 4.0], 1.0, loss=2.0), reply([4.0, 0.0], 3.0, loss=1.0)])
    assert merged.params["a"].tolist() == [3.0, 1.0]
    assert (merged.weight, merged.metrics, merged.norms) == (4.0, {"loss": 3.0}, (1.0, 3.0))


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.floats(0.1, 50)), min_size=2, max_size=12),
    st.data(),
)
def test_a_mean_of_means_is_the_mean(pairs: list[tuple[float, float]], data: st.DataObject) -> None:
    replies = [reply([value, -value], weight) for value, weight in pairs]
    cut = data.draw(st.integers(1, len(replies) - 1))
    whole = merge_replies(replies)
    parts = merge_replies([merge_replies(replies[:cut]), merge_replies(replies[cut:])])
    torch.testing.assert_close(whole.params, parts.params, rtol=1e-5, atol=1e-5)
    assert parts.weight == pytest.approx(whole.weight)
    assert parts.norms == whole.norms


def test_sums_are_in_float64() -> None:
    """Small changes beside a large one: float32 would lose each of them."""
    total = ReplySum()
    total.add(reply([2.0**26, 0.0], 1.0))
    for _ in range(8):
        total.add(reply([1.0, 0.0], 1.0))
    assert total.mean().params["a"][0].item() == pytest.approx((2.0**26 + 8) / 9, rel=1e-7)


def test_no_reply_is_an_error() -> None:
    with pytest.raises(ValueError, match="no reply"):
        merge_replies([])


def test_sums_add_and_missing_counts_as_zero() -> None:
    assert merge_sums([{"a": 1.0}, {"a": 2.0, "b": 5.0}]) == {"a": 3.0, "b": 5.0}


def test_a_good_reply_has_no_problem() -> None:
    assert reply_problem(reply([1.0, 2.0], 5.0), SHAPES, 10.0, SENT, 3.0) is None


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Reply({}, 1.0, {}, ()), "names differ: a"),
        (Reply({"a": torch.ones(2), "b": torch.ones(1)}, 1.0, {}, ()), "names differ: b"),
        (Reply({"a": torch.ones(1)}, 1.0, {}, ()), r"shape \(1,\) instead of \(2,\)"),
        (Reply({"a": torch.ones(2, dtype=torch.int64)}, 1.0, {}, ()), "int64 is not a float"),
        (reply([math.nan, 1.0], 1.0), "not finite"),
        (reply([math.inf, 1.0], 1.0), "not finite"),
        (reply([1.0, 1.0], 0.0), "weight 0.0"),
        (reply([1.0, 1.0], -3.0), "weight -3.0"),
        (reply([1.0, 1.0], math.nan), "weight nan"),
        (reply([1.0, 1.0], 1e9), "weight 1000000000.0"),
        (reply([3.1, 0.0], 1.0), "norm 3.1 is above 3"),
        (reply([1e6, 1e6], 1.0), "norm 1.41e[+]06 is above 3"),
        (reply([1.0, 1.0], 1.0, loss=math.nan), "a metric is not finite"),
    ],
)
def test_a_bad_reply_is_named(bad: Reply, message: str) -> None:
    problem = reply_problem(bad, SHAPES, 10.0, SENT, 3.0)
    assert problem is not None
    import re

    assert re.search(message, problem)
