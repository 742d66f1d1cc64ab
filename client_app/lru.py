"""Values that are made once and kept while they are in use, in a bounded number."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LRUCache(Generic[Key, Value]):
    """At most ``max_size`` values by key; the one that was used least recently leaves first."""

    def __init__(self, max_size: int) -> None:
        """Starts empty."""
        self._max_size = max_size
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of ``key``, made now if it is not kept; what ``make`` raises is not kept."""
        if key not in self._values:
            self._values[key] = make()
        self._values.move_to_end(key)
        while len(self._values) > self._max_size:
            self._values.popitem(last=False)
        return self._values[key]

    def values(self) -> list[Value]:
        """What is kept, the least recently used first."""
        return list(self._values.values())

    def retain(self, wanted: Callable[[Value], bool]) -> None:
        """Keeps only the values that are ``wanted``."""
        for key in [key for key, value in self._values.items() if not wanted(value)]:
            del self._values[key]
