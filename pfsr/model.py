"""``pfsr.Model``: a trained model that recommends, is evaluated and is saved."""

from __future__ import annotations

import shutil
import time
import weakref
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from pfsr.arguments import id_text, id_texts, is_one_id, list_length, model_path, unix_seconds
from pfsr_core.evaluation.baselines import BASELINES
from pfsr_core.files import staged_directory
from pfsr_core.runs.model_files import (
    MODEL_DIRECTORY,
    MODEL_FILE,
    ModelFilesError,
    check_results,
    load_model,
    record_results,
    store_errors,
)
from pfsr_core.runs.results import client_columns
from pfsr_core.serving.recommend import add_items, check_question, recommend
from pfsr_core.serving.served_model import RecommendationError, Served, preview

RESULTS_FILE = "clients.csv"
NOT_METRICS = ("covered", "shipped")


class Model:
    """A trained model of all clients, as :func:`pfsr.fit` returns and :func:`pfsr.load` reads it.

    It stands for a directory of files. Those of a fitted model are temporary and go with the
    object; :meth:`save` keeps them. They hold the users' histories: do not publish them.

    Attributes:
        directory: The files: those of a run, see ``pfsr report``.
    """

    def __init__(self, directory: Path, *, temporary: Path | None = None) -> None:
        """Reads the model in ``directory``.

        Args:
            directory: A run or saved model.
            temporary: What to delete when this object is no longer used.
        """
        self.directory = directory
        self._served: Served = load_model(model_directory(directory))
        self._temporary = temporary
        if temporary is not None:
            weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)

    def __repr__(self) -> str:
        """The algorithm, and the number of users, clients and items."""
        return (
            f"<pfsr.Model {self.algorithm}: {len(self.users)} users in {len(self.clients)} "
            f"clients, {len(self.items)} items>"
        )

    @property
    def algorithm(self) -> str:
        """Name of the algorithm that trained the model."""
        return self._served.origin.algorithm

    @property
    def settings(self) -> Mapping[str, Any]:
        """All settings by dotted key."""
        return MappingProxyType(dict(self._served.origin.settings))

    @property
    def clients(self) -> list[str]:
        """Names of the clients, such as "shop-berlin" or "group-03"."""
        return list(self._served.clients)

    @cached_property
    def users(self) -> list[str]:
        """Ids of the users that the model was trained with, client by client."""
        return [
            user_id
            for served_client in self._served.clients.values()
            for user_id in served_client.histories
        ]

    @property
    def items(self) -> list[str]:
        """Ids of all items."""
        return list(self._served.items.ids)

    def client_of(self, user: str | int) -> str:
        """Name of the client that a user belongs to. Raises RecommendationError."""
        user_id = id_text(user, "user")
        for client_name, served_client in self._served.clients.items():
            if user_id in served_client.histories:
                return client_name
        raise RecommendationError(
            f"unknown user {user_id!r} (users: {preview(self.users)}). Fix: give one of "
            f"model.users, or a list of item ids for a new user."
        )

    def recommend(
        self, user_or_history: str | int | Sequence[str | int], k: int = 10, *, client: str = ""
    ) -> pd.DataFrame:
        """The ``k`` best items for a user, without those of the user's history.

        Args:
            user_or_history: Id of a user of the model; or the item ids of a new user, oldest first.
                A user without items gets the client's most frequent ones.
            k: Number of items.
            client: Whose model answers. By default that of the user's own client, for a new user
                that of the client with the most users.

        Returns:
            Columns ``item``, ``score`` and ``title`` ("" where none is known), the best item first,
            with the rank from 1 on as index. ``attrs`` says which ``client`` answered, the
            ``source`` of the scores, and the ``skipped`` items that this client does not have.

        Raises:
            RecommendationError: An unknown user or client, ``k`` below 1, or ids that are neither
                text nor whole numbers.
            ModelFilesError: The model's files were damaged or changed meanwhile.
        """
        if not isinstance(client, str):
            raise RecommendationError(
                f"client = {client!r}. Fix: choose one of model.clients, or leave it out."
            )
        user_id, item_ids = "", None
        if is_one_id(user_or_history):
            user_id = id_text(user_or_history, "user")
            self.client_of(user_id)
        else:
            item_ids = id_texts(user_or_history)
        num_items = list_length(k)
        num_items = min(num_items, len(self._served.items.ids))
        with store_errors(model_directory(self.directory)):
            answer = recommend(self._served, user_id, num_items, item_ids, client)
        item_rows = [
            (recommendation.item, recommendation.score, recommendation.title)
            for recommendation in answer.recommendations
        ]
        frame = pd.DataFrame(item_rows, columns=["item", "score", "title"])
        frame.index = pd.RangeIndex(1, len(frame) + 1, name="rank")
        frame.attrs = {
            "client": answer.client,
            "source": answer.source,
            "skipped": list(answer.skipped),
        }
        return frame

    def add(
        self,
        user: str | int,
        items: str | int | Sequence[str | int],
        time_seconds: float | None = None,
    ) -> None:
        """Adds new interactions to a user's history; the model itself does not change.

        They are stored in the model's directory: :meth:`save` keeps them.

        Args:
            user: Id of a user of the model.
            items: Item ids, oldest first; or the id of one item.
            time_seconds: When they were, in seconds since 1970. Default: now.

        Raises:
            RecommendationError: An unknown user or item, no item, or a time below 0.
            ModelFilesError: The model's files cannot be written.
        """
        self.client_of(user)
        check_question(self._served, 1, "")
        item_ids = id_texts(items)
        seconds = unix_seconds(time.time() if time_seconds is None else time_seconds)
        with store_errors(model_directory(self.directory)):
            add_items(self._served, id_text(user, "user"), item_ids, seconds)

    def evaluate(self, *, by_client: bool = True) -> pd.DataFrame:
        """The metrics of the model, the baselines and the algorithms trained for comparison.

        They were computed when the model was trained, each client ranking its own catalogue without
        the items of the user's history.

        Args:
            by_client: One row for each client; otherwise one row for all users together.

        Returns:
            Rows of the trained methods first, then of the baselines. Columns ``method``, ``client``
            (by client), ``users``, ``interactions``, ``split`` ("valid" or "test"), then means over
            the users: the metrics such as ``hr@10`` and ``ndcg@10``, and ``covered``, the share of
            users whose held-out item occurs in the client's training data. ``pfsr: global`` is the
            model without its private part.

        Raises:
            ModelFilesError: A model that was saved without its metrics, or damaged ones.
        """
        results_path = self.directory / RESULTS_FILE
        if not results_path.is_file():
            raise ModelFilesError(
                f"{results_path}: no such file. Fix: give the directory of the run, not its model "
                f"alone."
            )
        check_results(model_directory(self.directory), results_path)
        result_rows = _read_results(results_path)
        is_baseline = result_rows["method"].isin(list(BASELINES))
        trained_first = pd.concat([result_rows[~is_baseline], result_rows[is_baseline]])
        return client_means(trained_first, by_client=by_client)

    def save(self, directory: str | Path) -> None:
        """Writes the model, its metrics and the users' histories into a new directory.

        ``pfsr.load``, ``pfsr report`` and ``pfsr recommend --model`` read it.

        Args:
            directory: Must not exist yet, or be empty.

        Raises:
            ModelFilesError: ``directory`` holds something already, is a place within the model's
                own directory, or cannot be written.
        """
        given_directory = model_path(directory)
        target_directory = given_directory.absolute()
        try:
            self._check_target(target_directory)
            with staged_directory(target_directory) as stage_directory:
                shutil.copytree(self.directory, stage_directory, dirs_exist_ok=True)
                results_path = stage_directory / RESULTS_FILE
                if results_path.is_file():
                    record_results(model_directory(stage_directory), results_path)
        except OSError as error:
            reason = error.strerror or "not all files could be copied"
            raise ModelFilesError(
                f"{given_directory} cannot be written: {reason}. Fix: name a new directory in one "
                f"that you may write to."
            ) from error

    def _check_target(self, target_directory: Path) -> None:
        """Raises ModelFilesError where a model cannot be saved."""
        own_directory = (self._temporary or self.directory).resolve()
        if target_directory.resolve().is_relative_to(own_directory):
            loss = " and would be deleted with the model" if self._temporary else ""
            raise ModelFilesError(
                f"{target_directory} is within the model's own directory{loss}. Fix: name a "
                f"directory elsewhere."
            )
        if target_directory.is_symlink() and not target_directory.exists():
            raise ModelFilesError(
                f"{target_directory} is a link to nothing. Fix: name another directory."
            )
        if target_directory.exists() and (
            not target_directory.is_dir() or any(target_directory.iterdir())
        ):
            raise ModelFilesError(
                f"{target_directory} is there already. Fix: name another directory."
            )


def load(directory: str | Path) -> Model:
    """A model that was saved, or that a run left: ``pfsr run --local``, ``pfsr central``.

    Args:
        directory: Of :meth:`Model.save`, or of the run.

    Raises:
        ModelFilesError: ``directory`` holds no model, or a damaged one.
    """
    given_directory = model_path(directory)
    try:
        return Model(given_directory)
    except OSError as error:
        raise ModelFilesError(
            f"{given_directory} cannot be read: {error.strerror}. Fix: give the directory that a "
            f"model was saved into, and that you may read."
        ) from error


def model_directory(directory: Path) -> Path:
    """Where the model of a run is: in its subdirectory, or ``directory`` itself."""
    if (directory / MODEL_FILE).is_file():
        return directory
    return directory / MODEL_DIRECTORY if (directory / MODEL_DIRECTORY).is_dir() else directory


def _read_results(results_path: Path) -> pd.DataFrame:
    """The rows of clients.csv. Raises ModelFilesError where they are damaged."""
    text_columns = ["method", "client", "split", "shipped"]
    try:
        result_rows = pd.read_csv(results_path, dtype=dict.fromkeys(text_columns, str))
        needed_columns = [name for name in client_columns() if name != "shipped"]
        number_columns = [name for name in needed_columns if name not in text_columns]
        is_complete = bool(result_rows[needed_columns].notna().all(axis=None))
        are_numbers = all(
            pd.api.types.is_numeric_dtype(result_rows[name]) for name in number_columns
        )
    except (ValueError, KeyError, OSError):  # pandas' own errors are ValueErrors
        is_complete = are_numbers = False
    if not is_complete or not are_numbers:
        raise ModelFilesError(
            f"{results_path} is damaged: its rows are not those of a run. Fix: restore the "
            f"directory from a backup, or train again."
        )
    return result_rows


def client_means(result_rows: pd.DataFrame, *, by_client: bool) -> pd.DataFrame:
    """Means over users from the rows of clients.csv, which hold sums.

    Args:
        result_rows: Columns ``method``, ``client``, ``users``, ``interactions``, ``split``,
            ``X_sum`` for each metric X, ``covered`` and ``shipped``.
        by_client: Whether clients stay apart.
    """
    sum_columns = [name for name in result_rows.columns if name.endswith("_sum")]
    group_columns = ["method", "client", "split"] if by_client else ["method", "split"]
    totals = result_rows.groupby(group_columns, sort=False, as_index=False)[
        ["users", "interactions", *sum_columns, "covered"]
    ].sum()
    metric_means = {
        name.removesuffix("_sum"): totals[name] / totals["users"] for name in sum_columns
    }
    leading_columns = [name for name in group_columns if name != "split"]
    return pd.DataFrame(
        {
            **{name: totals[name] for name in (*leading_columns, "users", "interactions", "split")},
            **metric_means,
            "covered": totals["covered"] / totals["users"],
        }
    )
