"""Arguments of the Python API: ids, whole numbers and paths, checked before they are used."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from pfsr_core.runs.model_files import ModelFilesError
from pfsr_core.serving.served_model import RecommendationError

LATEST_SECOND = 2**53
"""The largest time that a number of double precision tells apart from the next one."""


def whole_number(value: Any) -> int | None:
    """``value`` as an int where it is a whole number, also one of NumPy or ``2.0``; else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        as_float = float(value)
        return int(as_float) if as_float.is_integer() else None
    return None


def id_text(value: Any, role: str) -> str:
    """An id as the model knows it: text, or a whole number written as text.

    Args:
        value: What was given.
        role: "user" or "item", for the message.

    Raises:
        RecommendationError: A value of another type.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # of NumPy
    if isinstance(value, str):
        return str(value)
    number = whole_number(value)
    if number is None:
        raise RecommendationError(
            f"{role} {value!r} is a {type(value).__name__}. Fix: give an id as text or as a whole "
            f"number, as in model.{role}s."
        )
    return str(number)


def is_one_id(value: Any) -> bool:
    """Whether ``value`` is a single id, or nothing that ids could be taken from."""
    is_scalar = getattr(value, "ndim", None) == 0
    return (
        is_scalar or isinstance(value, str | bytes | bytearray) or not isinstance(value, Iterable)
    )


def id_texts(values: Any) -> list[str]:
    """Item ids as text; a single id is one item.

    Raises:
        RecommendationError: What is neither an id nor a sequence of ids.
    """
    if is_one_id(values):
        return [id_text(values, "item")]
    if isinstance(values, Mapping | Set) or getattr(values, "ndim", 1) != 1:
        raise RecommendationError(
            f"the items are a {type(values).__name__}. Fix: give a list of item ids, oldest first."
        )
    return [id_text(value, "item") for value in values]


def list_length(k: Any) -> int:
    """The number of items asked for. Raises RecommendationError for what is no whole number."""
    number = whole_number(k)
    if number is None:
        raise RecommendationError(f"k = {k!r}. Fix: give a whole number from 1 on, as k=10.")
    return number


def unix_seconds(time_seconds: Any) -> int:
    """A time as whole seconds. Raises RecommendationError for what is no number from 0 on."""
    is_number = isinstance(time_seconds, numbers.Real) and not isinstance(time_seconds, bool)
    if not is_number or not 0 <= time_seconds <= LATEST_SECOND:
        raise RecommendationError(
            f"time_seconds = {time_seconds!r}. Fix: give seconds since 1970, a number from 0 on, "
            f"or leave it out for now."
        )
    return int(time_seconds)


def model_path(directory: Any) -> Path:
    """A directory as an absolute path. Raises ModelFilesError for what is no path."""
    if not isinstance(directory, str | os.PathLike) or not str(directory):
        raise ModelFilesError(
            f"directory is {directory!r}. Fix: give the path of a directory, as text or a Path."
        )
    if "\0" in str(directory):
        raise ModelFilesError(
            f"directory {str(directory)!r} has a NUL character. Fix: give a path without it."
        )
    try:
        return Path(directory).expanduser()
    except (TypeError, RuntimeError) as error:
        raise ModelFilesError(
            f"directory {str(directory)!r}: {error}. Fix: write the path out."
        ) from None
