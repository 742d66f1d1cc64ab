"""``pfsr.fit``: from a DataFrame or a file to a trained model, in this process."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from pfsr.arguments import whole_number
from pfsr.keywords import setting_keys
from pfsr.model import Model
from pfsr.recipe_files import recipe_path
from pfsr_core.assembly.compatibility import algorithm_names
from pfsr_core.assembly.data import FederatedDataset, build_federation
from pfsr_core.assembly.settings import Settings, flat_settings, parse_settings
from pfsr_core.data.datasets import DATASETS, load_dataset
from pfsr_core.data.errors import DataError
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.readers.delimited import find_role
from pfsr_core.data.readers.frame import read_frame
from pfsr_core.runs.files import check_run_name
from pfsr_core.runs.local import simulate
from pfsr_core.settings.fields import SettingsError, Value
from pfsr_core.settings.recipes import load_recipe

FRAME_SOURCE = "DataFrame"
"""The ``data.source`` of a model that was fitted to a DataFrame."""


def fit(
    data: pd.DataFrame | str | Path,
    recipe: str | Path = "pfsr",
    clients: str | int | Literal["user"] | None = None,
    *,
    silent: bool = False,
    **settings: Any,
) -> Model:
    """Trains a model on the interactions in ``data``, with the plain loop, in this process.

    The last item of every user is the test item and the one before it the validation item; users
    with fewer than three interactions are left out. Nothing global is changed: neither random
    states nor threads, working directory or plotting backend.

    Args:
        data: A DataFrame with one interaction a row; or the path of a file (CSV, TSV, Parquet,
            RecBole's ``.inter``); or the name of a dataset such as "ml-100k". Columns: ``user``,
            ``item`` and ``time``, or a common synonym such as ``user_id``, ``item_id``,
            ``timestamp``; optionally ``title`` and ``text`` about the item. Times are seconds since
            1970, ``datetime64`` or ISO dates.
        recipe: Name of a recipe, or the path of a TOML file.
        clients: Who is a client, the unit that has a model of its own: the name of a column, such
            as "shop", for one client per value; a number, for so many groups of users; "user", for
            one client per user, with items that clients share: ``items="dual"``, or a recipe such
            as "dual"; None, for what the recipe says.
        silent: Whether to show no progress bar.
        **settings: Settings that replace the recipe's own: the last part of a key where it is
            clear, as ``rounds=10``; nested, as ``train={"batch_size": 8}``; or the whole key, as
            ``**{"train.batch-size": 8}``. Algorithms to train beside it for comparison are named
            by ``compare=["fed-avg", "local-only"]``; without it the recipe's algorithm alone is.

    Returns:
        The trained model, see :class:`pfsr.Model`.

    Raises:
        DataError: Data that cannot be used; the message names column, row and fix.
        SettingsError: A setting that is unknown or does not fit.

    Example:
        >>> import pfsr
        >>> log = pfsr.datasets.load("synthetic", "users=60,items=80")
        >>> model = pfsr.fit(log, clients=4, rounds=1, silent=True)
        >>> model.recommend(model.users[0], k=3).columns.tolist()
        ['item', 'score', 'title']
    """
    run_settings = parse_settings(_flat(data, recipe, clients, settings))
    refuse_continuing(run_settings)
    check_run_name(run_settings.run)
    _check_items(run_settings, single_users=run_settings.federation.partition == "user")
    if isinstance(data, pd.DataFrame):
        interactions = read_frame(data)
    else:
        interactions = load_dataset(run_settings.data.source, run_settings.data.path)
    _check_clients_column(clients, interactions)
    federation = build_federation(run_settings, interactions)
    num_users = len(federation.split.users)
    _check_items(run_settings, single_users=len(federation.clients) == num_users)
    temporary_root = Path(tempfile.mkdtemp(prefix="pfsr-"))
    try:
        run_directory = temporary_root / run_settings.run.name
        with _progress(run_settings, silent) as log_line:
            simulate(run_settings, federation, run_directory, log_line)
        return Model(run_directory, temporary=temporary_root)
    except BaseException:
        shutil.rmtree(temporary_root, ignore_errors=True)
        raise


def refuse_continuing(settings: Settings) -> None:
    """Raises SettingsError for settings that continue a run, which only Flower's runs can."""
    for field_name in ("resume", "warm_start"):
        earlier_run = getattr(settings.run, field_name)
        if earlier_run:
            raise SettingsError(
                f"run.{field_name.replace('_', '-')} = {earlier_run!r}, but a run in one process "
                f"keeps nothing to continue from. Fix: leave it out, or run through Flower (pfsr "
                f"run, without --local)."
            )


def size_text(federated_data: FederatedDataset) -> str:
    """How many users, clients and items take part."""
    num_users, num_items = len(federated_data.split.users), len(federated_data.split.item_ids)
    return f"{num_users} users in {len(federated_data.clients)} clients, {num_items} items"


def _flat(
    data: pd.DataFrame | str | Path,
    recipe: str | Path,
    clients: str | int | None,
    keyword_settings: dict[str, Any],
) -> dict[str, Value]:
    """Dotted keys of the recipe with what the caller gave on top."""
    given_settings = setting_keys(keyword_settings, flat_settings(Settings()))
    source_settings, partition_settings = _source(data), _partition(clients)
    _check_source(data, source_settings, given_settings)
    _check_partition(clients, partition_settings, given_settings)
    return {
        **_recipe_settings(recipe),
        "run.compare": "",
        **source_settings,
        **partition_settings,
        **given_settings,
    }


def _recipe_settings(recipe: str | Path) -> dict[str, Value]:
    """Dotted keys of the recipe."""
    if not isinstance(recipe, str | Path) or not str(recipe) or "\0" in str(recipe):
        raise SettingsError(
            f"recipe = {recipe!r}. Fix: give the name of a recipe, as 'pfsr', or the path of a "
            f"TOML file."
        )
    try:
        return load_recipe(recipe_path(recipe))
    except (OSError, RuntimeError) as error:
        raise SettingsError(
            f"recipe = {str(recipe)!r}: {error}. Fix: give the name of a recipe, as 'pfsr', or the "
            f"path of a TOML file."
        ) from error


def _check_source(
    data: pd.DataFrame | str | Path,
    source_settings: Mapping[str, Value],
    given_settings: Mapping[str, Value],
) -> None:
    """Raises SettingsError for settings that name other data than the argument."""
    for setting_key, own_value in source_settings.items():
        is_dataset = source_settings["data.source"] not in (FRAME_SOURCE, "file")
        if setting_key == "data.path" and is_dataset:
            continue  # what a dataset by name is given, such as its directory
        if given_settings.get(setting_key, own_value) != own_value:
            data_text = "a DataFrame" if isinstance(data, pd.DataFrame) else repr(str(data))
            raise SettingsError(
                f"{setting_key} = {given_settings[setting_key]!r}, but the data are {data_text}. "
                f"Fix: name the data by the first argument alone."
            )


def _check_partition(
    clients: str | int | None,
    partition_settings: Mapping[str, Value],
    given_settings: Mapping[str, Value],
) -> None:
    """Raises SettingsError for settings that contradict the argument ``clients``."""
    if clients is None:
        return
    for setting_key in ("federation.partition", "federation.column", "federation.clients"):
        # With values the column says which interactions are used, whoever the clients are.
        if setting_key == "federation.column" and given_settings.get("federation.values"):
            continue
        if setting_key in given_settings and (
            given_settings[setting_key] != partition_settings.get(setting_key)
        ):
            raise SettingsError(
                f"{setting_key} = {given_settings[setting_key]!r} contradicts clients = "
                f"{clients!r}. Fix: leave one of them out."
            )


def _check_items(settings: Settings, *, single_users: bool) -> None:
    """Raises SettingsError where no client could recommend anything to its user."""
    if single_users and settings.model.items == "private":
        raise SettingsError(
            "every client has a single user, and with model.items = 'private' it ranks the items "
            "of its own log alone: there is nothing new to recommend. Fix: items='dual', or "
            "items='semantic' for items with titles, or a recipe for such clients: "
            "recipe='dual', 'semantic' or 'pfedrec'; or choose fewer clients."
        )


def _check_clients_column(clients: str | int | None, interactions: Interactions) -> None:
    """Raises DataError for a ``clients`` that is no column but means something else."""
    if not isinstance(clients, str) or clients in (*interactions.columns, *interactions.left_out):
        return
    fix = ""
    if clients.strip().isdecimal():
        fix = f"clients={int(clients)} for so many clients"
    elif find_role([clients], "user"):
        fix = "clients='user' for a client a user"
    if fix and clients != "user":
        raise DataError(
            f"clients = {clients!r} is no column that clients could be told apart by (further "
            f"columns: {', '.join(interactions.columns) or 'none'}). Fix: {fix}, or name one of "
            f"them."
        )


def _source(data: pd.DataFrame | str | Path) -> dict[str, Value]:
    """``data.source`` and ``data.path``."""
    if isinstance(data, pd.DataFrame):
        return {"data.source": FRAME_SOURCE, "data.path": ""}
    if not isinstance(data, str | Path):
        raise DataError(
            f"data is a {type(data).__name__}. Fix: give a pandas DataFrame, the path of a file, "
            f"or the name of a dataset ({', '.join(DATASETS)})."
        )
    if not str(data) or "\0" in str(data):
        raise DataError(f"data = {str(data)!r} is no path. Fix: give the path of a file.")
    if str(data) in DATASETS:
        return {"data.source": str(data), "data.path": ""}
    return {"data.source": "file", "data.path": str(data)}


def _partition(clients: str | int | None) -> dict[str, Value]:
    """``federation.*`` of the argument ``clients``; nothing for None."""
    if clients is None:
        return {}
    num_clients = None if isinstance(clients, str) else whole_number(clients)
    if num_clients is None and (not isinstance(clients, str) or not clients):
        raise SettingsError(
            f"clients = {clients!r}. Fix: give the name of a column, a whole number of clients, or "
            f"'user' for a client a user."
        )
    if num_clients is None and clients != "user":
        return {"federation.partition": "column", "federation.column": clients}
    # What a recipe for clients by column says of its column does not apply.
    cleared_settings: dict[str, Value] = {"federation.column": "", "federation.values": ""}
    if num_clients is None:
        return {**cleared_settings, "federation.partition": "user"}
    cleared_settings["federation.sizes"] = ""
    return {**cleared_settings, "federation.partition": "group", "federation.clients": num_clients}


@contextlib.contextmanager
def _progress(settings: Settings, silent: bool) -> Iterator[Callable[[str], None]]:
    """A bar that advances by a round with every line it is given, and shows the line."""
    num_rounds = len(algorithm_names(settings)) * settings.federation.rounds
    bar_columns = [BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn()]
    columns = [*bar_columns, TextColumn("{task.description}")]
    with Progress(*columns, console=Console(stderr=True), disable=silent) as progress_bar:
        bar_task = progress_bar.add_task("preparing", total=num_rounds)
        yield lambda round_line: progress_bar.update(bar_task, advance=1, description=round_line)
