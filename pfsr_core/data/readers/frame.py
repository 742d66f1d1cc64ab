"""Reader of pandas DataFrames with the column names of ``delimited``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from pfsr_core.data.errors import MalformedFileError
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.readers.parquet import read_arrow

PLACE = Path("DataFrame")  # what errors name in place of a file; a "line" is a row, from 1


def read_frame(frame: pd.DataFrame) -> Interactions:
    """Interactions of a DataFrame, in the order of its rows; its index is not looked at.

    Args:
        frame: One interaction a row, with columns for the user, the item and the time. Times are
            numbers of seconds since 1970, ISO dates, ``datetime`` objects or ``datetime64``.

    Raises:
        MalformedFileError: A column is missing, or a cell of it cannot be used.
    """
    names = [str(name) for name in frame.columns]
    arrays = [_as_arrow(name, frame.iloc[:, at]) for at, name in enumerate(names)]
    return read_arrow(pa.Table.from_arrays(arrays, names=names), PLACE, str(PLACE))


def _as_arrow(name: str, column: pd.Series) -> pa.Array:
    """A column of one type; whole numbers that pandas holds as floats are whole numbers again."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if pd.api.types.is_float_dtype(column.dtype):
        whole = column.dropna()
        if len(whole) and bool(np.isfinite(whole).all() and (whole % 1 == 0).all()):
            column = column.astype("Int64")
    try:
        return pa.array(column, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        problem = f"the cells of column {name!r} are of several types ({error})"
        fix = f"convert the column, e.g. frame[{name!r}].astype(str)"
        raise MalformedFileError(PLACE, None, problem, fix) from None
