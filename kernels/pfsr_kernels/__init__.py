"""The compiled associative Mamba mixer: a shared library and its ctypes signatures.

Knows neither torch nor numpy: arrays are addresses. ``pfsr_core.models.kernels`` calls it; what
each function does stands in ``src/pfsr_kernels.h``.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

ABI_VERSION = 1
LIBRARY = Path(__file__).with_name("libpfsr_kernels.so")

PARAMETERS = (
    "conv_weight",
    "conv_bias",
    "dt_bias",
    "A_log",
    "D",
    "norm_weight",
    "A_log_anchored",
    "gate_bias",
)


class Shape(ctypes.Structure):
    """``pfsr_shape``."""

    _fields_ = [
        (name, c_int64)
        for name in (
            "rows",
            "length",
            "groups",
            "inner",
            "heads",
            "state",
            "taps",
            "anchored",
            "threads",
        )
    ] + [("eps", c_double)]


class Parameters(ctypes.Structure):
    """``pfsr_parameters``, and ``pfsr_gradients``: addresses of float32 arrays."""

    _fields_ = [(name, c_void_p) for name in PARAMETERS]


@cache
def library() -> ctypes.CDLL:
    """The library with its signatures. Raises ``OSError`` where it does not load or fit."""
    loaded = ctypes.CDLL(str(LIBRARY))
    loaded.pfsr_abi_version.restype = c_int64
    version = loaded.pfsr_abi_version()
    if version != ABI_VERSION:
        raise OSError(f"{LIBRARY} has interface {version}, not {ABI_VERSION}: build it anew")
    shape, parameters = POINTER(Shape), POINTER(Parameters)
    for name, result, arguments in (
        ("pfsr_lanes", c_int64, []),
        ("pfsr_limit_lanes", c_int64, [c_int64]),
        ("pfsr_kept_floats", c_int64, [shape]),
        ("pfsr_forward", c_int, [shape, parameters] + 5 * [c_void_p]),
        ("pfsr_backward", c_int, [shape, parameters] + 6 * [c_void_p] + [parameters]),
    ):
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded
