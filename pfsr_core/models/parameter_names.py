"""Names of the parameters that hold item vectors, or make them."""

from __future__ import annotations

ITEMS = "items.weight"
PROJECTION = "item_projection"  # (D, S): public item vectors to item vectors
RESIDUAL = "item_residual"  # (n + 1, D): what a client adds to the rows of its own items
FACTORS = "adapter.factors"  # (n + 1, r) and
BIAS = "adapter.bias"  # (n + 1,): the rows of a market adapter, see models/adapter.py
ROW_NAMES = (ITEMS, RESIDUAL, FACTORS, BIAS)  # a row for each item, the padding row first
