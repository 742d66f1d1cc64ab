"""What is kept, and what leaves first."""

from __future__ import annotations

import pytest

from client_app.lru import LRUCache


def test_a_value_is_made_once_while_it_is_kept():
    cache, made = LRUCache(2), []
    for key in ("a", "a", "b", "a", "c", "a", "b"):
        assert cache.get(key, lambda key=key: made.append(key) or key.upper()) == key.upper()
    assert made == ["a", "b", "c", "b"], "b was used least recently when c came"
    assert cache.values() == ["A", "B"]


def test_what_was_not_made_is_not_kept():
    cache = LRUCache(2)
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 // 0)
    assert cache.get("a", lambda: 1) == 1


def test_values_that_are_not_wanted_leave():
    cache = LRUCache(3)
    for number in (1, 2, 3):
        cache.get(number, lambda number=number: number)
    cache.retain(lambda value: value != 2)
    assert cache.values() == [1, 3]
