"""The item modes in the ablation: their arms, and what is recorded of them.

Every mode with clients of 1, 5, 20, 47 and 100 users, with PFSR and with FedAvg: "dual
personalization can be integrated into existing methods". Of each arm the record holds the views of
its algorithm, the accuracy on targets that the client has trained and on those it has not, and the
bytes of a round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pfsr_core.assembly.data import FederatedDataset
from pfsr_core.evaluation.client import ClientEvaluation
from pfsr_core.evaluation.ranking import means, merge
from pfsr_core.federated.algorithm import FULL, ServerState
from pfsr_core.federated.evaluation import ClientModels, without_variants
from pfsr_core.federated.model import Assembly
from pfsr_core.items.text_vectors import WORDLLAMA
from pfsr_core.params import Params, shapes_of, size_of
from pfsr_core.runs.local_evaluation import Evaluations, evaluate_personal, evaluate_trained_on
from pfsr_core.settings.fields import Value

Overrides = dict[str, Value]

PRIVATE = "private"
PRIVATE_SIZES = {  # users per client -> how the name of an arm with private tables ends
    100: ", clients of 100",
    47: "",
    20: ", clients of 20",
    5: ", clients of 5",
    1: ", one user a client",
}
FEW = 20  # users from which on a client is a large one
BYTES_PER_VALUE = 4
RECORD_NAMES = {"seen-filtered": "excluded", "seen-included": "kept"}  # as in the first records

# Many small clients: a few of them a round, many rounds. A client of one user takes a step or two,
# so it sends plain gradients, and the server is the one that scales them.
MANY_CLIENTS: Overrides = {
    "federation.participation": 0.03,
    "federation.rounds": 240,
    "train.optimizer": "sgd",
    "train.batch-size": 4,
    "train.learning-rate": 0.1,
    "train.item-learning-rate": 0.1,
    "train.residual-learning-rate": 0.1,
    "train.projection-learning-rate": 0.1,
    "algorithm.server.optimizer": "adam",
    "algorithm.server.learning-rate": 0.006,
    "algorithm.server.decay": 0.99,
    "algorithm.server.epsilon": 1e-6,
    "algorithm.pfsr.fisher-samples": 8,
}
# Few large ones: averaging shrinks what single clients learn of an item, as with a shared table.
FEW_CLIENTS: Overrides = {
    "train.learning-rate": 0.006,
    "train.local-epochs": 2,
    "train.round-decay": 0.95,
}
RANDOM_START: Overrides = {
    "model.item-start": "common",
    "model.item-std": 0.02,
    "model.dropout": 0.2,
}
ITEMS: dict[str, Overrides] = {
    "shared": {"model.items": "shared", **RANDOM_START},
    "dual": {"model.items": "dual", **RANDOM_START},
    "semantic": {"model.items": "semantic", **RANDOM_START},
}
CLIENTS: dict[int, Overrides] = {
    1: {"federation.partition": "user", **MANY_CLIENTS},
    5: {"federation.clients": 943 // 5, **MANY_CLIENTS, "federation.participation": 0.1},
    20: {"federation.clients": 943 // 20, **FEW_CLIENTS},
    47: {"federation.clients": 943 // 47, **FEW_CLIENTS},
    100: {"federation.clients": 943 // 100, **FEW_CLIENTS},
}
# Residuals of large clients learn their histories by heart: small steps.
STEPS: dict[str, Overrides] = {
    "shared": {"train.item-learning-rate": 0.006},
    "dual": {"train.item-learning-rate": 0.006, "train.residual-learning-rate": 0.0003},
    "semantic": {
        "train.residual-learning-rate": 0.0003,
        "train.projection-learning-rate": 0.006,
        "train.round-decay": 0.91,
        "model.dropout": 0.4,
    },
}
ID_DIMS = (448, 192, 64, 0)  # numbers of the id beside the default's 960: less told, less learnt
LANGUAGE_ID_DIMS = (960, 0)  # and those where a language model has read the words
METHODS: dict[str, Overrides] = {"pfsr": {}, "fed-avg": {"algorithm.name": "fed-avg"}}


def item_arms() -> dict[str, Overrides]:
    """Settings by arm, see :func:`item_arm` and :func:`id_arm`; not those with private tables."""
    arms: dict[str, Overrides] = {
        item_arm(method, mode, users): {
            **of_mode,
            **of_size,
            **(STEPS[mode] if users >= FEW else {}),
            **of_method,
        }
        for users, of_size in CLIENTS.items()
        for mode, of_mode in ITEMS.items()
        for method, of_method in METHODS.items()
    }
    usual = arms[item_arm("fed-avg", "semantic", 1)]
    read = {**usual, "model.item-vectors": WORDLLAMA}
    return {
        **arms,
        **{id_arm(dim): {**usual, "model.id-dim": dim} for dim in ID_DIMS},
        **{language_arm(dim): {**read, "model.id-dim": dim} for dim in LANGUAGE_ID_DIMS},
    }


def item_arm(method: str, mode: str, users: int) -> str:
    """The arm of one of METHODS with PRIVATE or one of ITEMS, and clients of so many users."""
    if mode == PRIVATE:
        return f"{method}{PRIVATE_SIZES[users]}"
    return f"{method}, {mode} items, clients of {users}"


def id_arm(dim: int) -> str:
    """The arm of FedAvg with semantic items that differ in ``dim`` random numbers, a user each."""
    return f"fed-avg, semantic items, {dim} numbers of the id, clients of 1"


def language_arm(dim: int) -> str:
    """The arm of :func:`id_arm` with the vectors of a language model for counted words."""
    return f"fed-avg, semantic items, {WORDLLAMA} and {dim} numbers of the id, clients of 1"


def evaluate_all(
    assembly: Assembly,
    max_length: int,
    server: ServerState,
    states: Mapping[str, Params],
    federation: FederatedDataset,
) -> Evaluations:
    """Both splits of every client with the model that it would recommend with; no further view."""
    models = ClientModels(without_variants(assembly), max_length, server.params, states)
    return evaluate_personal(models, federation)


def views_of(
    assembly: Assembly,
    max_length: int,
    server: ServerState,
    states: Mapping[str, Params],
    federation: FederatedDataset,
) -> dict[str, Any]:
    """Test figures of each view of the algorithm, and of FULL where it has that."""
    algorithm, found = assembly.algorithm, {}
    for name, view in algorithm.personalization.variants.items():
        seen = replace(assembly, algorithm=algorithm.with_model(view))
        found[name] = evaluate_all(seen, max_length, server, states, federation)
    if algorithm.has_full_variant:
        models = ClientModels(assembly, max_length, server.params, states)
        found[FULL] = evaluate_trained_on(models, server.broadcast(), federation)
    return {name: figures(evaluations) for name, evaluations in found.items()}


def figures(found: Evaluations) -> dict[str, Any]:
    """NDCG@10 by split, all test means, and those by whether the client has trained the target."""
    test = found["test"]
    return {
        "valid": user_means(found["valid"])["excluded/ndcg@10"],
        "test": user_means(test)["excluded/ndcg@10"],
        "test_means": user_means(test),
        "test_by_target": {
            name: user_means([one.select(one.covered == covered) for one in test])
            for name, covered in (("covered", True), ("cold", False))
            if any((one.covered == covered).any() for one in test)
        },
    }


def bytes_of_a_round(assembly: Assembly) -> dict[str, int]:
    """Bytes to and from a client in a round, as float32."""
    down = size_of(shapes_of(assembly.algorithm.server.init().params))
    up = size_of(assembly.algorithm.client.reply_shapes)
    return {
        "bytes_down_per_client": BYTES_PER_VALUE * down,
        "bytes_up_per_client": BYTES_PER_VALUE * up,
    }


def user_means(evaluations: Sequence[ClientEvaluation]) -> dict[str, float]:
    """Means over all users of the clients."""
    found = means(merge(*(one.sums() for one in evaluations)))
    return {_record_name(key): value for key, value in found.items()}


def _record_name(key: str) -> str:
    candidates, _, metric = key.rpartition("/")
    return f"{RECORD_NAMES.get(candidates, candidates)}/{metric}" if candidates else metric
