"""Stacks of many clients' tensors: padded, stacked, and taken apart again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pfsr_core.models.compressors import USERS
from pfsr_core.models.parameter_names import ROW_NAMES
from pfsr_core.params import Params


def stack_params(params: Sequence[Params]) -> Params:
    """(K, ...) for every name; tensors of items' and users' rows are filled up with zeros."""
    return {
        name: pad_and_stack([one[name] for one in params])
        if name in (*ROW_NAMES, USERS)
        else torch.stack([one[name] for one in params])
        for name in (params[0] if params else {})
    }


def stack_rows(rows: Sequence[Params]) -> Params:
    """:func:`client_item_index` of many clients, filled up with padding: (K, n) for every name."""
    return {name: pad_and_stack([one[name] for one in rows]) for name in rows[0]}


def pad_and_stack(parts: Sequence[Tensor]) -> Tensor:
    """Parts (n_k, ...) in one (K, n, ...), filled up with zeros."""
    whole = parts[0].new_zeros(len(parts), max(map(len, parts)), *parts[0].shape[1:])
    for place, part in zip(whole, parts, strict=True):
        place[: len(part)] = part
    return whole


def unstack_params(stacks: Params, like: Sequence[Params]) -> list[Params]:
    """Undoes :func:`stack_params`, in views; ``like``: what was stacked."""
    columns = {name: stack.detach().unbind() for name, stack in stacks.items()}
    return [
        {name: column[k][: len(one[name])] for name, column in columns.items()}
        for k, one in enumerate(like)
    ]


def padding_logit_mask(counts: Sequence[int]) -> Tensor:
    """0 for the rows of every client's item table, -inf for those that fill it up: (K, V').

    ``counts``: each table's rows, the padding row included.
    """
    is_padding = torch.arange(1, max(counts)) >= torch.tensor(counts)[:, None]
    return torch.zeros(is_padding.shape).masked_fill(is_padding, -torch.inf)


def pad_known(parts: Sequence[Tensor | None]) -> Tensor | None:
    """:func:`pad_together` of what all clients have, or none of them."""
    known = [part for part in parts if part is not None]
    return pad_together(known) if known else None


def pad_together(parts: Sequence[Tensor]) -> Tensor:
    """Parts (B_k, L_k, ...) in one (K, B, L, ...), filled up with zeros."""
    rows, length = (max(part.shape[i] for part in parts) for i in (0, 1))
    whole = parts[0].new_zeros(len(parts), rows, length, *parts[0].shape[2:])
    for place, part in zip(whole, parts, strict=True):
        place[: part.shape[0], : part.shape[1]] = part
    return whole
