"""Which clients are trained as one program: groups of similar size within bounds of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from pfsr_core.models.parameter_names import ITEMS, PROJECTION
from pfsr_core.params import Params

MAX_PARAMETERS = 2**22  # of a group's clients together: 16 MB, and as much for each Adam moment
MAX_POSITIONS = 2048  # positions of a group's step, padding included: larger groups gain nothing
MAX_LOGITS = 2**22  # logits of a group's step: 16 MB


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

    def fits(self, num_clients: int) -> bool:
        """Whether ``num_clients`` clients of this size are not too much for one group."""
        return (
            num_clients * self.positions <= MAX_POSITIONS
            and num_clients * self.positions * self.items <= MAX_LOGITS
            and num_clients * self.parameters <= MAX_PARAMETERS
        )


def parameters_of(params: Params, table_rows: int) -> int:
    """Counts the values of a client's parameters.

    Args:
        params: Merged parameters.
        table_rows: Rows of the item table; it is counted too where it is projected from public
            vectors and not among ``params``.
    """
    projected_values = 0 if ITEMS in params else table_rows * len(params[PROJECTION])
    return projected_values + sum(tensor.numel() for tensor in params.values())


def group_by_size(
    sizes: Mapping[int, Size], sort_first: Callable[[int], int] = lambda _index: 0
) -> Iterator[list[int]]:
    """Groups clients of similar size within the bounds of memory.

    Args:
        sizes: The size of each client, by key.
        sort_first: What is compared before the size; the largest come first.

    Yields:
        Keys of the clients of a group.
    """
    group_keys: list[int] = []
    largest_size = Size(0, 0, 0, 0)
    for client_key in sorted(sizes, key=lambda i: (sort_first(i), sizes[i]), reverse=True):
        joined_size = Size(*map(max, largest_size, sizes[client_key]))
        if group_keys and not joined_size.fits(len(group_keys) + 1):
            yield group_keys
            group_keys, joined_size = [], sizes[client_key]
        group_keys.append(client_key)
        largest_size = joined_size
    if group_keys:
        yield group_keys
