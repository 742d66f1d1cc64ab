"""A trained model as a directory: what a run without a network ends with.

    save_model(directory, served)         writes it; replaces a model that is there
    load_model(directory) -> Served       reads it again, ready to recommend
    model_clients(served)                 the clients' data as they were split, to evaluate with

The files::

    model.json           format, run, algorithm, round, fingerprint, settings, digests of the files
    shared.safetensors   the shared parameters: all that the federation exchanged
    vocabulary.json      item ids by code, and titles
    node.sqlite          the clients' private states and histories, in a node's store: PRIVATE

``node.sqlite`` is a store as every node has one, so ``recommend``, ``forget`` and ``item-map`` take
the directory for their ``--state``. The other files hold nothing that is private to a client and
may be passed on without it. A model of another ``MODEL_FORMAT`` is refused.

The value in between is :class:`pfsr_core.serving.served_model.Served`: ``served.origin`` (run,
algorithm, round, fingerprint, settings), ``served.items`` (ids, titles), ``served.shared``,
``served.clients``. ``pfsr_core.runs.local.train_and_evaluate`` returns an ``Outcome`` with the
method ``served_model(run)`` that makes it::

    outcome = train_and_evaluate(experiment, log)
    served = outcome.served_model("my-run")
    save_model(directory, served)
    ...
    served = load_model(directory)
    answer = recommend(served, user, k=10)      # pfsr_core.serving.recommend
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors

from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.data.vocabulary import FILE_NAME as VOCABULARY
from pfsr_core.data.vocabulary import save_vocabulary
from pfsr_core.files import staged_directory, write_atomically, write_json
from pfsr_core.runs.files import RunError
from pfsr_core.serving.node_store import NodeStore
from pfsr_core.serving.restore import served_data
from pfsr_core.serving.served_model import Served
from pfsr_core.serving.sqlite_file import NodeStoreError, StateMissingError

MODEL_DIRECTORY = "model"  # of a run, in its directory
MODEL_FORMAT = 1
MODEL_FILE = "model.json"
SHARED_FILE = "shared.safetensors"
STORE_FILE = "node.sqlite"
RESULTS_DIGEST = "results_digest"  # of clients.csv beside a model that was saved with it
FILES = (MODEL_FILE, SHARED_FILE, VOCABULARY, STORE_FILE)


class ModelFilesError(RunError):
    """A directory that holds no model, or a damaged one; says which file and what to do."""


def save_model(directory: Path, served: Served) -> None:
    """Writes a model into ``directory``, written atomically.

    A model that is there is replaced. Interactions that were added to the store of ``served`` after
    training stay in that store: they are no part of the model.

    Raises:
        ModelFilesError: ``directory`` holds something else than a model.
    """
    _check_replaceable(directory)
    with staged_directory(directory) as stage_directory:
        shared_tensors = {
            tensor_name: tensor.contiguous() for tensor_name, tensor in served.shared.items()
        }
        write_atomically(stage_directory / SHARED_FILE, save_tensors(shared_tensors))
        save_vocabulary(stage_directory, served.items.ids, served.items.titles)
        NodeStore(stage_directory / STORE_FILE).install(served)
        origin = served.origin
        model_facts = {
            "format": MODEL_FORMAT,
            "run": origin.run,
            "algorithm": origin.algorithm,
            "round": origin.round,
            "fingerprint": origin.fingerprint,
            "settings": dict(origin.settings),
            "digests": {
                file_name: _digest(stage_directory / file_name)
                for file_name in (SHARED_FILE, VOCABULARY)
            },
        }
        write_json(stage_directory / MODEL_FILE, model_facts)


def load_model(directory: Path) -> Served:
    """The model that :func:`save_model` wrote. Private states are read when they are asked for.

    Raises:
        ModelFilesError: No model, a damaged one, or one of another format.
    """
    model_facts = _read_facts(directory)
    for file_name in FILES:
        if not (directory / file_name).is_file():
            raise _damaged(directory, f"{file_name} is missing")
    for file_name, saved_digest in model_facts["digests"].items():
        if _digest(directory / file_name) != saved_digest:
            raise _damaged(directory, f"{file_name} is not the file that was saved")
    with store_errors(directory):
        try:
            served = NodeStore(directory / STORE_FILE).served(model_facts["run"])
        except StateMissingError:
            raise _damaged(
                directory, f"{STORE_FILE} holds no model of run {model_facts['run']!r}"
            ) from None
        except (LookupError, TypeError, json.JSONDecodeError) as error:
            raise _damaged(directory, f"{STORE_FILE} cannot be read ({error!r})") from None
    if served.origin.fingerprint != model_facts["fingerprint"]:
        raise _damaged(directory, f"{STORE_FILE} holds another model than {MODEL_FILE} describes")
    return served


@contextmanager
def store_errors(directory: Path) -> Iterator[None]:
    """Errors of the model's ``node.sqlite`` as those of the model's files."""
    try:
        yield
    except StateMissingError as error:
        raise ModelFilesError(str(error)) from error
    except NodeStoreError as error:
        if isinstance(error.__cause__, OSError | sqlite3.OperationalError):  # rights or a full disk
            raise ModelFilesError(str(error)) from error
        reason = error.__cause__ or "it does not match its checksums"
        raise _damaged(directory, f"{STORE_FILE} cannot be read ({reason})") from error


def record_results(directory: Path, results_path: Path) -> None:
    """Writes the digest of the results beside a model into its facts, unless it is there."""
    model_facts = _read_facts(directory)
    if RESULTS_DIGEST not in model_facts:
        write_json(directory / MODEL_FILE, {**model_facts, RESULTS_DIGEST: _digest(results_path)})


def check_results(directory: Path, results_path: Path) -> None:
    """Raises ModelFilesError for results that are not those that were saved with the model."""
    saved_digest = _read_facts(directory).get(RESULTS_DIGEST)
    if saved_digest is not None and _digest(results_path) != saved_digest:
        raise _damaged(results_path.parent, f"{results_path.name} is not the file that was saved")


def model_clients(served: Served) -> tuple[ClientDataset, ...]:
    """The data of all clients, split as they were for training."""
    return tuple(served_data(served, client_name) for client_name in served.clients)


def _read_facts(directory: Path) -> dict[str, Any]:
    model_path = directory / MODEL_FILE
    if not model_path.is_file():
        raise ModelFilesError(
            f"{directory} holds no saved model: it has no {MODEL_FILE}. Fix: give the directory "
            f"that a model was saved into, e.g. runs/pfsr-20250131-120000/model."
        )
    try:
        model_facts = json.loads(model_path.read_text("utf-8"))
    except ValueError as error:
        raise _damaged(directory, f"{MODEL_FILE}: {error}") from None
    if not isinstance(model_facts, dict) or "format" not in model_facts:
        raise _damaged(directory, f"{MODEL_FILE} does not describe a model")
    if model_facts["format"] != MODEL_FORMAT:
        raise ModelFilesError(
            f"{directory} has model format {model_facts['format']}, this version reads format "
            f"{MODEL_FORMAT}. Fix: load it with the version that saved it, or train again."
        )
    if not isinstance(model_facts.get("digests"), dict) or not {"run", "fingerprint"} <= set(
        model_facts
    ):
        raise _damaged(directory, f"{MODEL_FILE} does not describe a model")
    return model_facts


def _damaged(directory: Path, problem: str) -> ModelFilesError:
    return ModelFilesError(
        f"{directory} is a damaged model: {problem}. Fix: restore the directory from a backup, or "
        f"train again."
    )


def _digest(file_path: Path) -> str:
    return hashlib.sha256(file_path.read_bytes()).hexdigest()


def _check_replaceable(directory: Path) -> None:
    """Nothing but a model, or an empty directory, is ever replaced."""
    if not directory.exists():
        return
    is_empty = directory.is_dir() and not any(directory.iterdir())
    if not is_empty and not (directory / MODEL_FILE).is_file():
        raise ModelFilesError(
            f"{directory} is there already and holds no model. Fix: name another directory."
        )
