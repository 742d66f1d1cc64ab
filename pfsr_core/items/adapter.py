"""Market adapter: what a client changes about item vectors that it shares with others (FeCoSR).

    e_i' = e_i * (1 + g) + U_i V        score of item i: <h, e_i'> + b_i

``g`` (D,) scales coordinates, ``U`` (n + 1, r) and ``V`` (r, D) move the rows of the client's own
items within r directions, ``b`` (n + 1,) raises what is popular there. With g, U and b at zero
nothing changes, whatever V is.

The bias is a last column of the table, and what the model expects next ends with a 1, so that
training, evaluation and serving need no code for a bias.
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


def first_adapter(num_rows: int, embedding_dim: int, adapter_rank: int, seed: int) -> Params:
    """An adapter that changes nothing, for ``num_rows`` = n + 1 rows."""
    generator = torch.Generator().manual_seed(seed)
    return {
        SCALE: torch.zeros(embedding_dim),
        FACTORS: torch.zeros(num_rows, adapter_rank),
        BASIS: torch.randn(adapter_rank, embedding_dim, generator=generator) * START,
        BIAS: torch.zeros(num_rows),
    }


def adapt(item_table: Tensor, adapter_params: Mapping[str, Tensor], own_rows: Tensor) -> Tensor:
    """The item table with the adapter applied; differentiable, and may be mapped.

    Args:
        item_table: Shared item vectors (V + 1, D).
        adapter_params: g, U, V and b of the client.
        own_rows: Rows of the table that those of U and b belong to (n + 1,).

    Returns:
        (V + 1, D + 1): the adapted vectors, and the bias as a last column.
    """
    scaled_rows = item_table * (1 + adapter_params[SCALE])
    moved_rows = add_rows(scaled_rows, adapter_params[FACTORS] @ adapter_params[BASIS], own_rows)
    bias_column = add_rows(
        item_table.new_zeros(len(item_table), 1), adapter_params[BIAS][:, None], own_rows
    )
    return torch.cat([moved_rows, bias_column], dim=1)


def with_bias(apply: Apply) -> Apply:
    """A model for tables with a last column of biases: what it expects next, with a 1 after it."""

    def biased(
        model_params: Params,
        item_codes: Tensor,
        dropout_bits: Tensor | None,
        item_times: Tensor | None = None,
        sequence_context: SequenceContext | None = None,
    ) -> Tensor:
        return _and_one(
            apply(
                _without_bias(model_params), item_codes, dropout_bits, item_times, sequence_context
            )
        )

    return biased


def memory_with_bias(
    compress: Compress, continue_from: ContinueFrom
) -> tuple[Compress, ContinueFrom]:
    """The same for the functions of a model that serves from a memory."""

    def compressed(
        model_params: Params, item_codes: Tensor, user_rows: Tensor, item_times: Tensor | None
    ) -> State:
        return compress(_without_bias(model_params), item_codes, user_rows, item_times)

    def continued(
        model_params: Params, item_codes: Tensor, memory_state: State, item_times: Tensor | None
    ) -> tuple[Tensor, State]:
        hidden_states, next_memory = continue_from(
            _without_bias(model_params), item_codes, memory_state, item_times
        )
        return _and_one(hidden_states), next_memory

    return compressed, continued


def _without_bias(model_params: Params) -> Params:
    return {**model_params, ITEMS: model_params[ITEMS][:, :-1]}


def _and_one(hidden_states: Tensor) -> Tensor:
    return torch.cat([hidden_states, hidden_states.new_ones(*hidden_states.shape[:-1], 1)], dim=-1)
