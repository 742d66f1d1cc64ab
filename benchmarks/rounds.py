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
from functools import cache, partial

from torch import Tensor

from benchmarks.peers import scorer_round
from benchmarks.timing import Measurement, Work, compare
from pfsr_core.algorithms.pfedrec import PFedRecSettings
from pfsr_core.assembly.assemble import assemble, local_training
from pfsr_core.assembly.settings import AlgorithmSettings, Settings
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.data.partition import partition_by_user
from pfsr_core.data.splits import leave_one_out
from pfsr_core.data.synthetic.clusters import generate
from pfsr_core.federated.simulation import node_update, state_of
from pfsr_core.models.item_scorer import head_of
from pfsr_core.settings.sections import ModelSettings, TrainSettings
from pfsr_core.training.allocator import keep_freed_memory
from pfsr_core.training.item_scorer import draw_training_pairs

NAME = "round"
USERS, ITEMS, MEAN_LENGTH = 943, 1682, 106
SHORT_LENGTH = 25  # of histories that are one window each
COUNTS = (30, 100, 300, USERS)
SECONDS = 30.0  # for the repetitions of one pair
DEFAULT = ModelSettings()
TINY = ModelSettings(embedding_dim=16, state_dim=8, num_layers=1, num_heads=2, max_length=20)
PAIRS = PFedRecSettings(item_step="batch")
SCORER = Settings(
    model=ModelSettings(items="shared", embedding_dim=32, item_std=1.0),
    train=TrainSettings(learning_rate=0.1, item_learning_rate=13456.0, batch_size=256),
    algorithm=AlgorithmSettings(name="pfedrec", own={"pfedrec": PAIRS}),
)


def measure() -> Iterator[Measurement]:
    """The default encoder with all clients and fewer, shorter histories, tiny models, PFSR."""
    keep_freed_memory()
    for threads in (1, 2):
        yield _pair("default encoder (d 64, L 50)", DEFAULT, USERS, target=3.0, threads=threads)
    yield _pair("default encoder, histories of 25", DEFAULT, USERS, mean_length=SHORT_LENGTH)
    yield _pair("tiny encoder (d 16, L 20)", TINY, USERS)
    yield from _scorer_pairs()
    for count in COUNTS[:-1]:
        yield _pair("default encoder (d 64, L 50)", DEFAULT, count)
    yield _pair("default encoder (d 64, L 50)", DEFAULT, COUNTS[1], algorithm="pfsr")


def _pair(  # noqa: PLR0913 - what may differ between two lines
    label: str,
    model: ModelSettings,
    count: int,
    *,
    algorithm: str = "fed-avg",
    mean_length: int = MEAN_LENGTH,
    target: float | None = None,
    threads: int = 1,
) -> Measurement:
    settings = replace(Settings(), model=model, algorithm=AlgorithmSettings(name=algorithm))
    batched, loop = (
        training(settings, engine, count, mean_length) for engine in ("batched", "loop")
    )
    curve = model is DEFAULT and threads == 1 and algorithm == "fed-avg"
    return compare(
        NAME,
        f"batched, {algorithm}, {label}, {count} clients of one user",
        batched,
        "one by one",
        loop,
        target=target,
        threads=threads,
        size=float(count) if curve and mean_length == MEAN_LENGTH else None,
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
    clients = one_user_clients(MEAN_LENGTH)[:count]
    algorithm = assemble(SCORER, clients[0].item_ids).algorithm
    shared = algorithm.server.init().params
    heads = [head_of(algorithm.client.init(data)) for data in clients]
    config = local_training(SCORER)

    def work() -> Tensor:
        drawn = partial(draw_training_pairs, config, round_=1, by_row=False)
        count = PAIRS.negatives_per_positive
        client_pairs = [drawn(client_data=data, negatives_per_positive=count) for data in clients]
        return scorer_round(shared, heads, client_pairs, config)

    return work


def training(settings: Settings, engine: str, count: int, mean_length: int = MEAN_LENGTH) -> Work:
    """The first round on ``count`` clients, from states that are there already."""
    settings = replace(settings, train=replace(settings.train, engine=engine))
    clients = one_user_clients(mean_length)[:count]
    algorithm_ = assemble(settings, clients[0].item_ids).algorithm
    broadcast = algorithm_.server.init().broadcast()
    states = {data.client: state_of(algorithm_, {}, data) for data in clients}
    return lambda: node_update(algorithm_, broadcast, states, clients)


@cache
def one_user_clients(mean_length: int) -> Sequence[ClientDataset]:
    """As many as ML-100K has users."""
    log = generate(USERS, ITEMS, seed=0, mean_length=mean_length)
    return partition_by_user(leave_one_out(log))
