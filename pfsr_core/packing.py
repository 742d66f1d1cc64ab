"""Shared parameters as one flat float32 vector, cut by names and shapes that both sides know."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pfsr_core.params import Params, Shapes, flatten, unflatten
from pfsr_core.protocol import Flat, ProtocolError


def pack(params: Params) -> Flat:
    """Parameters as one vector of float32, (sum of sizes,)."""
    vector: Flat = flatten(params).numpy()
    return vector


def unpack(vector: NDArray[Any], shapes: Shapes) -> Params:
    """Undoes :func:`pack`; raises ProtocolError on another dtype or size."""
    if vector.dtype != np.float32:
        raise ProtocolError(f"dtype {vector.dtype} instead of float32")
    try:
        return unflatten(torch.from_numpy(np.array(vector)), shapes)
    except ValueError as error:
        raise ProtocolError(str(error)) from None


def size_of(shapes: Shapes) -> int:
    """Values in the flat vector of ``shapes``."""
    return sum(prod(shape) for shape in shapes.values())
