"""Stacks of many clients' tensors: padded, stacked and unstacked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pfsr_core.models.compressors import USERS
from pfsr_core.models.parameter_names import ROW_NAMES
from pfsr_core.params import Params


def stack_params(client_params: Sequence[Params]) -> Params:
    """(K, ...) for every name; tensors of items' and users' rows are filled up with zeros."""
    return {
        tensor_name: pad_and_stack([one_client[tensor_name] for one_client in client_params])
        if tensor_name in (*ROW_NAMES, USERS)
        else torch.stack([one_client[tensor_name] for one_client in client_params])
        for tensor_name in (client_params[0] if client_params else {})
    }


def stack_rows(client_indices: Sequence[Params]) -> Params:
    """:func:`client_item_index` of many clients, filled up with padding: (K, n) for every name."""
    return {
        tensor_name: pad_and_stack([item_index[tensor_name] for item_index in client_indices])
        for tensor_name in client_indices[0]
    }


def pad_and_stack(client_tensors: Sequence[Tensor]) -> Tensor:
    """Parts (n_k, ...) in one (K, n, ...), filled up with zeros."""
    padded_stack = client_tensors[0].new_zeros(
        len(client_tensors), max(map(len, client_tensors)), *client_tensors[0].shape[1:]
    )
    for padded_slot, client_tensor in zip(padded_stack, client_tensors, strict=True):
        padded_slot[: len(client_tensor)] = client_tensor
    return padded_stack


def unstack_params(stacked_params: Params, client_params: Sequence[Params]) -> list[Params]:
    """Undoes :func:`stack_params`, in views; ``client_params``: what was stacked."""
    unbound_tensors = {
        tensor_name: stack.detach().unbind() for tensor_name, stack in stacked_params.items()
    }
    return [
        {
            tensor_name: unbound_tensor[k][: len(one_client[tensor_name])]
            for tensor_name, unbound_tensor in unbound_tensors.items()
        }
        for k, one_client in enumerate(client_params)
    ]


def padding_logit_mask(row_counts: Sequence[int]) -> Tensor:
    """0 for the rows of every client's item table, -inf for those that fill it up: (K, V').

    ``row_counts``: each table's rows, the padding row included.
    """
    is_padding = torch.arange(1, max(row_counts)) >= torch.tensor(row_counts)[:, None]
    return torch.zeros(is_padding.shape).masked_fill(is_padding, -torch.inf)


def pad_known(client_tensors: Sequence[Tensor | None]) -> Tensor | None:
    """:func:`pad_together` of what all clients have, or none of them."""
    known_tensors = [client_tensor for client_tensor in client_tensors if client_tensor is not None]
    return pad_together(known_tensors) if known_tensors else None


def pad_together(client_tensors: Sequence[Tensor]) -> Tensor:
    """Parts (B_k, L_k, ...) in one (K, B, L, ...), filled up with zeros."""
    max_rows, max_length = (
        max(client_tensor.shape[i] for client_tensor in client_tensors) for i in (0, 1)
    )
    padded_stack = client_tensors[0].new_zeros(
        len(client_tensors), max_rows, max_length, *client_tensors[0].shape[2:]
    )
    for padded_slot, client_tensor in zip(padded_stack, client_tensors, strict=True):
        padded_slot[: client_tensor.shape[0], : client_tensor.shape[1]] = client_tensor
    return padded_stack
