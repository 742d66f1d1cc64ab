"""Datasets by name, as DataFrames.

Example:
    >>> import pfsr
    >>> log = pfsr.datasets.load("synthetic", "users=50,items=80")
    >>> list(log.columns)
    ['user', 'item', 'timestamp', 'title', 'text', 'market']
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["load", "names"]


def names() -> list[str]:
    """The names that :func:`load` knows."""
    from pfsr_core.data.datasets import DATASETS

    return list(DATASETS)


def load(name: str, path: str | Path = "") -> pd.DataFrame:
    """The interactions of a dataset, one a row, in the order of its files.

    Args:
        name: Name of the dataset, one of :func:`names`. "ml-100k" and "ml-1m" are downloaded into
            the cache at the first use; "file" reads a file of your own.
        path: File or directory of the dataset, where it needs one. For the synthetic ones options
            such as ``"users=200,items=300,seed=1"``.

    Returns:
        Columns ``user`` and ``item`` (text), ``timestamp`` (seconds since 1970, or positions in the
        history where the dataset has no times), ``title`` and ``text`` where the dataset has words
        about its items, and its further columns.

    Raises:
        DataError: An unknown name, or data that are missing or damaged.
    """
    from pfsr_core.data.datasets import load_dataset
    from pfsr_core.data.prepare import interactions_table

    return cast("pd.DataFrame", interactions_table(load_dataset(name, str(path))).to_pandas())
