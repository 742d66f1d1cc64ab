from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfsr_core.params import (
    Partition,
    PartitionError,
    clone,
    distance,
    fingerprint,
    flatten,
    shapes_of,
    unflatten,
)


@given(
    st.dictionaries(
        st.text("abc.", min_size=1, max_size=6), st.lists(st.integers(0, 3), max_size=3), max_size=6
    )
)
def test_unflatten_undoes_flatten(shapes: dict[str, list[int]]) -> None:
    params = {name: torch.randn(shape) for name, shape in shapes.items()}
    back = unflatten(flatten(params), shapes_of(params))
    assert list(back) == list(params)
    assert all(torch.equal(back[name], params[name]) for name in params)


def test_flat_order_does_not_depend_on_the_order_of_names() -> None:
    a, b = torch.ones(2), torch.zeros(1)
    assert flatten({"b": b, "a": a}).tolist() == flatten({"a": a, "b": b}).tolist() == [1, 1, 0]


@pytest.mark.parametrize("flat", [torch.zeros(4), torch.zeros(1), torch.zeros(3, 1)])
def test_unflatten_refuses_another_size(flat: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="flat vector"):
        unflatten(flat, {"a": (3,)})


def test_partition_is_exhaustive_and_disjoint() -> None:
    partition = Partition.of(["a", "b"], private=lambda name: name == "b")
    assert partition == Partition(frozenset("a"), frozenset("b"))
    assert partition.split({"a": torch.ones(1), "b": torch.zeros(1)})[1].keys() == {"b"}


@pytest.mark.parametrize(
    ("partition", "names", "message"),
    [
        (Partition(frozenset("a"), frozenset("ab")), "ab", "both parts: a"),
        (Partition(frozenset("a"), frozenset("b")), "abc", "no part: c"),
        (Partition(frozenset("a"), frozenset("b")), "a", "no model: b"),
    ],
)
def test_a_wrong_partition_is_refused(partition: Partition, names: str, message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        partition.check(names)


def test_distance_by_hand_and_its_gradient_at_zero() -> None:
    assert float(distance({"a": torch.tensor([3.0, 4.0])}, {"a": torch.zeros(2)})) == 5.0
    leaf = torch.zeros(2, requires_grad=True)
    distance({"a": leaf}, {"a": torch.zeros(2)}).backward()
    assert leaf.grad is not None and leaf.grad.tolist() == [0.0, 0.0]


def test_clone_is_detached() -> None:
    leaf = torch.ones(1, requires_grad=True)
    copy = clone({"a": leaf})["a"]
    assert not copy.requires_grad and copy.data_ptr() != leaf.data_ptr()


def test_fingerprint_sees_shapes_and_facts() -> None:
    base = fingerprint({"a": (1, 2)}, "x")
    assert base == fingerprint({"a": (1, 2)}, "x")
    assert len({base, fingerprint({"a": (2, 1)}, "x"), fingerprint({"a": (1, 2)}, "y")}) == 3
