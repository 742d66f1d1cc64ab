"""Numbers whose rounding is too small to decide anything."""

from __future__ import annotations

from pfsr_core.params import Params


def double(params: Params) -> Params:
    """The same values in float64; numbers of items, masks and the like as they are.

    What two ways of computing in float32 end with differs by 1e-7 or so. That is as much as two of
    the scores of thousands of pairs may differ by, which swaps ranks, and what Adam makes a whole
    step of where a gradient is zero but for its rounding.
    """
    return {n: t.double() if t.is_floating_point() else t for n, t in params.items()}
