"""A node with many one-user clients: all in one program against one after the other.

The data are synthetic, with as many users and items as ML-100K and histories as long on average.
The first round of federated averaging, one local epoch; both engines start from the same states and
give the same parameters (a test holds them to 1e-5).

So with PFedRec's item scorer, at the published step sizes; its second peer is a stand-in for the
loop of the authors' code, which ends with the same mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

from torch import Tensor

from pfsr_core.assembly import assemble, scorer_training
from pfsr_core.benchmarks.peers import scorer_round
from pfsr_core.benchmarks.timing import Measurement, Work, compare
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.data.federation import partition_by_user
from pfsr_core.data.splits import leave_one_out
from pfsr_core.data.synthetic import generate
from pfsr_core.models.item_scorer import head_of
from pfsr_core.scorer_training import lesson_of
from pfsr_core.settings import AlgorithmSettings, ModelSettings, Settings, TrainSettings
from pfsr_core.simulation import node_update, state_of

NAME = "round"
USERS, ITEMS, MEAN_LENGTH = 943, 1682, 106
COUNTS = (30, 100, 300, USERS)
SECONDS = 60.0  # for the repetitions of one pair
MODELS = {
    "default encoder (d 64, L 50)": (ModelSettings(), 3.0),
    "tiny encoder (d 16, L 20)": (
        ModelSettings(embedding_dim=16, state_dim=8, num_layers=1, num_heads=2, max_length=20),
        10.0,
    ),
}

SCORER = Settings(
    model=ModelSettings(items="shared", embedding_dim=32, item_std=1.0),
    train=TrainSettings(learning_rate=0.1, item_learning_rate=13456.0, batch_size=256),
    algorithm=AlgorithmSettings(name="pfedrec", item_step="batch"),
)


def measure() -> Iterator[Measurement]:
    """Each model with all clients, the default one with fewer; PFedRec and PFSR besides FedAvg."""
    for label, (model, target) in MODELS.items():
        yield _pair(label, model, "fed-avg", USERS, target)
    yield from _scorer_pairs()
    label, (model, _) = next(iter(MODELS.items()))
    for count in COUNTS[:-1]:
        yield _pair(label, model, "fed-avg", count, None)
    yield _pair(label, model, "pfsr", COUNTS[1], None)


def _pair(
    label: str, model: ModelSettings, algorithm: str, count: int, target: float | None
) -> Measurement:
    settings = replace(Settings(), model=model, algorithm=AlgorithmSettings(name=algorithm))
    batched, loop = (training(settings, engine, count) for engine in ("batched", "loop"))
    return compare(
        NAME,
        f"batched, {algorithm}, {label}, {count} clients of one user",
        batched,
        "one by one" if label.startswith("default") else "one by one, tiny encoder",
        loop,
        target=target,
        size=float(count) if label.startswith("default") and algorithm == "fed-avg" else None,
        seconds=SECONDS,
    )


def _scorer_pairs() -> Iterator[Measurement]:
    peers = {
        "one by one": (training(SCORER, "loop", USERS), None),
        "one by one (stand-in for the authors' loop)": (scorer_stand_in(USERS), 10.0),
    }
    for peer, (work, target) in peers.items():
        yield compare(
            NAME,
            f"batched, pfedrec, item scorer (d 32), {USERS} clients of one user",
            training(SCORER, "batched", USERS),
            peer,
            work,
            target=target,
            seconds=SECONDS,
        )


def scorer_stand_in(count: int) -> Work:
    """The first round of PFedRec on ``count`` clients as the authors' code would take it."""
    clients = one_user_clients()[:count]
    algorithm = assemble(SCORER, clients[0].item_ids).algorithm
    shared = algorithm.init().params
    heads = [head_of(algorithm.init_client(data)) for data in clients]
    config = scorer_training(SCORER)

    def work() -> Tensor:
        lessons = [lesson_of(config, data, 1) for data in clients]
        return scorer_round(shared, heads, lessons, config)

    return work


def training(settings: Settings, engine: str, count: int) -> Work:
    """The first round on ``count`` clients, from states that are there already."""
    settings = replace(settings, train=replace(settings.train, engine=engine))
    clients = one_user_clients()[:count]
    algorithm_ = assemble(settings, clients[0].item_ids).algorithm
    broadcast = algorithm_.init().broadcast()
    states = {data.client: state_of(algorithm_, {}, data) for data in clients}
    return lambda: node_update(algorithm_, broadcast, states, clients)


@cache
def one_user_clients() -> Sequence[ClientDataset]:
    """As many as ML-100K has users."""
    log = generate(USERS, ITEMS, seed=0, mean_length=MEAN_LENGTH)
    return partition_by_user(leave_one_out(log))
