"""The compiled associative Mamba block and products: a shared library, its ctypes signatures.

Knows neither torch nor numpy: arrays are addresses. ``pfsr_core.models.ops.kernels`` calls it; what
each function does stands in ``src/pfsr_kernels.h``.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

ABI_VERSION = 2
LIBRARY = Path(__file__).with_name("libpfsr_kernels.so")

SHAPE = "rows length groups dim inner heads state taps anchored threads"
PRODUCT = "groups rows columns depth A_group A_row A_step B_group B_step B_column add threads"
PARAMETERS = (
    "in_weight out_weight conv_weight norm_weight conv_bias dt_bias A_log D"
    " A_log_anchored gate_bias gate_weight"
)


class Shape(ctypes.Structure):
    """``pfsr_shape``."""

    _fields_ = [(name, c_int64) for name in SHAPE.split()] + [("eps", c_double)]


class Product(ctypes.Structure):
    """``pfsr_product``."""

    _fields_ = [(name, c_int64) for name in PRODUCT.split()]


class Parameters(ctypes.Structure):
    """``pfsr_parameters``, and ``pfsr_gradients``: addresses of float32 arrays."""

    _fields_ = [(name, c_void_p) for name in PARAMETERS.split()]


class State(ctypes.Structure):
    """``pfsr_state``."""

    _fields_ = [(name, c_void_p) for name in ("conv", "h", "S", "c")]


@cache
def library() -> ctypes.CDLL:
    """The library with its signatures. Raises ``OSError`` where it does not load or fit."""
    loaded = ctypes.CDLL(str(LIBRARY))
    loaded.pfsr_abi_version.restype = c_int64
    version = loaded.pfsr_abi_version()
    if version != ABI_VERSION:
        raise OSError(f"{LIBRARY} has interface {version}, not {ABI_VERSION}: build it anew")
    shape, parameters, state = POINTER(Shape), POINTER(Parameters), POINTER(State)
    for name, result, arguments in (
        ("pfsr_lanes", c_int64, []),
        ("pfsr_limit_lanes", c_int64, [c_int64]),
        ("pfsr_kept_floats", c_int64, [shape]),
        ("pfsr_forward", c_int, [shape, parameters] + 4 * [c_void_p]),
        ("pfsr_backward", c_int, [shape, parameters] + 5 * [c_void_p] + [parameters]),
        ("pfsr_multiply", c_int, [POINTER(Product)] + 4 * [c_void_p]),
        ("pfsr_step", c_int, [shape, parameters, c_void_p, state, c_void_p, state]),
    ):
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded
