"""Datasets by name. Each loader takes a path; what it means depends on the dataset.

``ml-100k`` and ``ml-1m`` are fetched when the path is empty, ``synthetic`` and ``synthetic-long``
read options such as ``users=200,items=300,seed=1`` from it, the others need a file or directory.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path

from pfsr_core.data.errors import DataError, DataUnavailableError
from pfsr_core.data.fetch import fetch_ml_1m, fetch_ml_100k
from pfsr_core.data.files import read_file
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.movielens import read_ratings_csv, read_ratings_dat, read_u_data
from pfsr_core.data.recbole import read_inter
from pfsr_core.data.s3rec import read_s3rec
from pfsr_core.data.synthetic import generate
from pfsr_core.data.synthetic_long import generate_long

SYNTHETIC_DEFAULTS = {"users": 200, "items": 300, "seed": 0}
LONG_DEFAULTS = {"users": 400, "length": 200, "seed": 0}


def load_dataset(name: str, path: str = "") -> Interactions:
    """The dataset ``name`` of DATASETS; raises DataError for an unknown name."""
    if name not in DATASETS:
        raise DataError(f"unknown dataset {name!r}. Fix: choose one of {', '.join(DATASETS)}.")
    return DATASETS[name](path)


def _ml_100k(path: str) -> Interactions:
    file = fetch_ml_100k(path)
    read = read_inter if file.suffix == ".inter" else read_u_data
    return read(file, "ml-100k")


def _ml_1m(path: str) -> Interactions:
    return read_ratings_dat(fetch_ml_1m(path))


def _ml_latest_small(path: str) -> Interactions:
    return read_ratings_csv(_local("ml-latest-small", path, "ratings.csv"))


def _amazon_beauty(path: str) -> Interactions:
    return read_s3rec(_local("amazon-beauty", path, "Beauty.txt"), "amazon-beauty")


def _synthetic(path: str) -> Interactions:
    return generate(**{**SYNTHETIC_DEFAULTS, **_options(path, generate)})


def _synthetic_long(path: str) -> Interactions:
    return generate_long(**{**LONG_DEFAULTS, **_options(path, generate_long)})


def _local(name: str, path: str, file_name: str) -> Path:
    place = Path(path).expanduser() / file_name if Path(path).is_dir() else Path(path)
    if not path or not place.is_file():
        reason = "no such file" if path else "no path was given"
        fix = f"give the path of {file_name} or of its directory"
        raise DataUnavailableError(name, [(str(place) if path else "path", reason)], fix)
    return place


def _options(text: str, generator: Callable[..., Interactions]) -> dict[str, int]:
    """Whole numbers out of ``users=200,items=300``, arguments of the ``generator``."""
    known = tuple(signature(generator).parameters)
    options = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = (word.strip() for word in part.partition("="))
        if key not in known or not value.isdecimal():
            fix = f"write key=whole number with the keys {', '.join(known)}"
            raise DataError(f"synthetic: cannot read the option {part!r}. Fix: {fix}.")
        options[key] = int(value)
    return options


DATASETS: dict[str, Callable[[str], Interactions]] = {
    "ml-100k": _ml_100k,
    "ml-1m": _ml_1m,
    "ml-latest-small": _ml_latest_small,
    "amazon-beauty": _amazon_beauty,
    "file": read_file,
    "synthetic": _synthetic,
    "synthetic-long": _synthetic_long,
}
