"""Item scorer: one linear function of an item's vector, without a history (PFedRec's model).

``score(j) = w . E[j] + b``, the probability that item j is liked its sigmoid (Zhang et al., "Dual
Personalization on Federated Recommendation", IJCAI 2023: the score function that stands in for the
user vector). As a next-item model it expects the same vector w at every position; b moves all
scores alike and no rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.params import Params

WEIGHT, BIAS = "score.weight", "score.bias"
ROWS, CODES = "personal/items", "personal/codes"
"""In a client's state: the rows (n, D) of its own view of the table, and their item codes (n,)."""


class ItemScorer(nn.Module):
    """``items``: table (V + 1, D), row 0 is padding. ``score``: D to 1."""

    def __init__(self, num_items: int, embedding_dim: int) -> None:
        """A scorer over ``num_items`` = V items of ``embedding_dim`` = D numbers."""
        super().__init__()
        self.items = nn.Embedding(num_items + 1, embedding_dim, padding_idx=0)
        self.score = nn.Linear(embedding_dim, 1)

    def forward(self, item_codes: Tensor, *_unread: object) -> Tensor:
        """Item codes (B, L) -> what each position expects next (B, L, D): w, whatever they are."""
        return self.score.weight[0].expand(*item_codes.shape, -1)


def item_logits(model_params: Params, item_rows: Tensor) -> Tensor:
    """``w . E[rows] + b``.

    Args:
        model_params: Item table and score function.
        item_rows: Row numbers of any shape.

    Returns:
        Logits in the shape of ``item_rows``.
    """
    logits: Tensor = model_params[ITEMS][item_rows] @ model_params[WEIGHT][0] + model_params[BIAS]
    return logits


def head_of(model_params: Params) -> Params:
    """The score function of a whole model or of a client's state."""
    return {name: model_params[name] for name in (WEIGHT, BIAS)}


def first_head(embedding_dim: int, seed: int) -> Params:
    """The score function that every client starts with, uniform within 1 / sqrt(D).

    Args:
        embedding_dim: D, width of an item vector.
        seed: Of the generator.
    """
    generator, init_bound = torch.Generator().manual_seed(seed), embedding_dim**-0.5
    weight = torch.empty(1, embedding_dim).uniform_(-init_bound, init_bound, generator=generator)
    return {
        WEIGHT: weight,
        BIAS: torch.empty(1).uniform_(-init_bound, init_bound, generator=generator),
    }
