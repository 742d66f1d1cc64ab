"""Datasets by name. Each loader takes a path; what it means depends on the dataset.

``ml-100k`` and ``ml-1m`` are fetched when the path is empty, the synthetic ones read options such
as ``users=200,items=300,seed=1`` from it, the others need a file or directory.

``synthetic-markets`` is ``synthetic`` with five markets of 800, 300, 150, 80 and 40 users, each of
which sells six items of ten. ``federation.partition = "column"``, ``federation.column = "market"``
and ``federation.catalogues = "own"`` make clients of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from pfsr_core.data.download import fetch_ml_1m, fetch_ml_100k
from pfsr_core.data.errors import DataError, DataUnavailableError
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.readers.files import READERS, read_file
from pfsr_core.data.readers.movielens import read_ratings_csv, read_ratings_dat, read_u_data
from pfsr_core.data.readers.recbole import read_inter
from pfsr_core.data.readers.s3rec import read_s3rec
from pfsr_core.data.readers.xmarket import read_xmarket
from pfsr_core.data.synthetic.clusters import generate
from pfsr_core.data.synthetic.long_range import generate_long

SYNTHETIC = {"users": 200, "items": 300, "seed": 0}
MARKETS = {
    "sizes": (800, 300, 150, 80, 40),
    "items": 1000,
    "seed": 0,
    "clusters": 24,
    "mean_length": 12,
    "sold": 60,
}
LONG = {"users": 400, "length": 200, "seed": 0}


def load_dataset(dataset_name: str, path: str = "") -> Interactions:
    """The dataset ``dataset_name`` of DATASETS; raises DataError for an unknown name."""
    if dataset_name not in DATASETS and Path(dataset_name).suffix.lower() in READERS:
        raise DataError(
            f"{dataset_name!r} is no dataset but a path. "
            f"Fix: read it as the dataset 'file' with its path: file --path {dataset_name}, "
            f"or data.source=file and data.path={dataset_name}."
        )
    if dataset_name not in DATASETS:
        raise DataError(
            f"unknown dataset {dataset_name!r}. Fix: choose one of {', '.join(DATASETS)}."
        )
    return DATASETS[dataset_name](path)


def _ml_100k(path: str) -> Interactions:
    rating_file = fetch_ml_100k(path)
    read_ratings = read_inter if rating_file.suffix == ".inter" else read_u_data
    return read_ratings(rating_file, "ml-100k")


def _ml_1m(path: str) -> Interactions:
    return read_ratings_dat(fetch_ml_1m(path))


def _ml_latest_small(path: str) -> Interactions:
    return read_ratings_csv(_local_file("ml-latest-small", path, "ratings.csv"))


def _amazon_beauty(path: str) -> Interactions:
    return read_s3rec(_local_file("amazon-beauty", path, "Beauty.txt"), "amazon-beauty")


def _synthetic(path: str, defaults: Mapping[str, Any]) -> Interactions:
    given_options = _parse_options(path, generate)
    sizes = given_options.get("sizes", defaults.get("sizes", ()))
    implied_options = {"users": sum(sizes), "markets": len(sizes)} if sizes else {}
    return generate(**{**defaults, **implied_options, **given_options})


def _synthetic_long(path: str) -> Interactions:
    return generate_long(**{**LONG, **_parse_options(path, generate_long)})


def _local_file(dataset_name: str, path: str, file_name: str) -> Path:
    file_path = Path(path).expanduser()
    file_path = file_path / file_name if file_path.is_dir() else file_path
    if not path or not file_path.is_file():
        reason = "no such file" if path else "no path was given"
        fix = f"give the path of {file_name} or of its directory"
        raise DataUnavailableError(
            dataset_name, [(str(file_path) if path else "path", reason)], fix
        )
    return file_path


def _parse_options(text: str, generator: Callable[..., Interactions]) -> dict[str, Any]:
    """Arguments of the ``generator`` out of ``users=200,items=300``; of ``sizes=80/40`` several."""
    known_keys = tuple(signature(generator).parameters)
    options: dict[str, Any] = {}
    for option_text in filter(None, (option_text.strip() for option_text in text.split(","))):
        key, _, value = (word.strip() for word in option_text.partition("="))
        numbers = value.split("/") if key == "sizes" else [value]
        if key not in known_keys or not all(map(str.isdecimal, numbers)):
            list_example = ", or sizes=800/300" if "sizes" in known_keys else ""
            fix = f"write key=whole number with the keys {', '.join(known_keys)}{list_example}"
            raise DataError(f"synthetic: cannot read the option {option_text!r}. Fix: {fix}.")
        options[key] = tuple(map(int, numbers)) if key == "sizes" else int(value)
    return options


DATASETS: dict[str, Callable[[str], Interactions]] = {
    "ml-100k": _ml_100k,
    "ml-1m": _ml_1m,
    "ml-latest-small": _ml_latest_small,
    "amazon-beauty": _amazon_beauty,
    "xmarket": read_xmarket,
    "file": read_file,
    "synthetic": partial(_synthetic, defaults=SYNTHETIC),
    "synthetic-markets": partial(_synthetic, defaults=MARKETS),
    "synthetic-long": _synthetic_long,
}
