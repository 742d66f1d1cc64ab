"""Which clients are trained as one program: groups of similar size within bounds of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from pfsr_core.models.parameter_names import ITEMS, PROJECTION
from pfsr_core.params import Params

PARAMETERS = 2**22  # of a group's clients together: 16 MB, and as much for each Adam moment
POSITIONS = 2048  # positions of a group's step, padding included: larger groups gain nothing
LOGITS = 2**22  # logits of a group's step: 16 MB


class Size(NamedTuple):
    """A client's largest step (rows, length), its item table's rows, and all its parameters."""

    rows: int
    length: int
    items: int
    parameters: int

    @property
    def positions(self) -> int:
        """Positions of a step, padding included."""
        return self.rows * self.length

    def fits(self, count: int) -> bool:
        """Whether ``count`` clients of this size are not too much for one group."""
        return (
            count * self.positions <= POSITIONS
            and count * self.positions * self.items <= LOGITS
            and count * self.parameters <= PARAMETERS
        )


def parameters_of(params: Params, items: int) -> int:
    """Numbers of a client's parameters, with the table of ``items`` rows that is made from them."""
    made = 0 if ITEMS in params else items * len(params[PROJECTION])
    return made + sum(tensor.numel() for tensor in params.values())


def group_by_size(
    sizes: Mapping[int, Size], first: Callable[[int], int] = lambda _index: 0
) -> Iterator[list[int]]:
    """The keys in groups that fit; sorted by ``first``, then by size, the largest first."""
    group: list[int] = []
    largest = Size(0, 0, 0, 0)
    for index in sorted(sizes, key=lambda i: (first(i), sizes[i]), reverse=True):
        joined = Size(*map(max, largest, sizes[index]))
        if group and not joined.fits(len(group) + 1):
            yield group
            group, joined = [], sizes[index]
        group.append(index)
        largest = joined
    if group:
        yield group
