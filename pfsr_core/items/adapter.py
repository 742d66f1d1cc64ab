"""Market adapter: what a client changes about item vectors that it shares with others (FeCoSR).

    e_i' = e_i * (1 + g) + U_i V        score of item i: <h, e_i'> + b_i

``g`` (D,) scales coordinates, ``U`` (n + 1, r) and ``V`` (r, D) move the rows of the client's own
items within r directions, ``b`` (n + 1,) raises what is popular there. With g, U and b at zero
nothing changes, whatever V is.

The bias is a last column of the table, and what the model expects next ends with a 1, so that
training, evaluation and serving know of no bias.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pfsr_core.items.tables import add_rows
from pfsr_core.models.compressors import SequenceContext
from pfsr_core.models.encoders.base import State
from pfsr_core.models.next_item import Apply, Compress, ContinueFrom
from pfsr_core.models.parameter_names import BIAS, FACTORS, ITEMS
from pfsr_core.params import Params

SCALE = "adapter.scale"  # g
BASIS = "adapter.basis"  # V
START = 0.1  # spread of V's coordinates at the start


def first_adapter(rows: int, dim: int, rank: int, seed: int) -> Params:
    """An adapter that changes nothing, for ``rows`` = n + 1 rows."""
    generator = torch.Generator().manual_seed(seed)
    return {
        SCALE: torch.zeros(dim),
        FACTORS: torch.zeros(rows, rank),
        BASIS: torch.randn(rank, dim, generator=generator) * START,
        BIAS: torch.zeros(rows),
    }


def adapt(table: Tensor, adapter: Mapping[str, Tensor], codes: Tensor) -> Tensor:
    """The table (V + 1, D) with the adapter applied, and the bias as a last column: (V + 1, D + 1).

    ``codes`` (n + 1,): which rows those of U and b belong to. Differentiable, and may be mapped.
    """
    scaled = table * (1 + adapter[SCALE])
    moved = add_rows(scaled, adapter[FACTORS] @ adapter[BASIS], codes)
    bias = add_rows(table.new_zeros(len(table), 1), adapter[BIAS][:, None], codes)
    return torch.cat([moved, bias], dim=1)


def with_bias(apply: Apply) -> Apply:
    """A model for tables with a last column of biases: what it expects next, with a 1 after it."""

    def biased(
        params: Params,
        items: Tensor,
        bits: Tensor | None,
        times: Tensor | None = None,
        context: SequenceContext | None = None,
    ) -> Tensor:
        return _and_one(apply(_without_bias(params), items, bits, times, context))

    return biased


def memory_with_bias(
    compress: Compress, continue_from: ContinueFrom
) -> tuple[Compress, ContinueFrom]:
    """The same of a model that serves from a memory."""

    def compressed(params: Params, items: Tensor, users: Tensor, times: Tensor | None) -> State:
        return compress(_without_bias(params), items, users, times)

    def continued(
        params: Params, items: Tensor, memory: State, times: Tensor | None
    ) -> tuple[Tensor, State]:
        hidden, after = continue_from(_without_bias(params), items, memory, times)
        return _and_one(hidden), after

    return compressed, continued


def _without_bias(params: Params) -> Params:
    return {**params, ITEMS: params[ITEMS][:, :-1]}


def _and_one(hidden: Tensor) -> Tensor:
    return torch.cat([hidden, hidden.new_ones(*hidden.shape[:-1], 1)], dim=-1)
