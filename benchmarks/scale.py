"""A round that asks as many clients out of ever more: its cost should be that of those it asks.

Synthetic one-user clients with 20 interactions each on one node, federated averaging of the default
model, private states in the node's store on disk, as a node has them. Every population is measured
in a fresh process: the data first, then rounds.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.timing import Measurement, high_water
from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.settings import Settings, with_algorithm
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.data.partition import partition_by_user
from pfsr_core.data.splits import leave_one_out
from pfsr_core.data.synthetic.clusters import generate
from pfsr_core.federated.sampling import sample_clients
from pfsr_core.federated.simulation import update_clients
from pfsr_core.params import Params
from pfsr_core.serving.node_store import NodeStore

NAME = "scale"
POPULATIONS = (1_000, 10_000, 100_000)
ASKED, ITEMS, LENGTH, ROUNDS = 100, 2_000, 20, 4
FLAT = 1 / 1.5  # a round may cost up to 1.5 times the smallest population's: machines are noisy
RUN, ALGORITHM, FINGERPRINT = "scale", "fed-avg", "scale"


@dataclass(frozen=True)
class Cost:
    """Of one population: seconds of preparing its data and of a round; peak of the process, MB."""

    data_seconds: float
    round_seconds: float
    data_mb: float
    peak_mb: float


def measure() -> Iterator[Measurement]:
    """A round of ASKED clients against the same number of the smallest population; 1 % of all."""
    costs = {population: _in_fresh_process(population, ASKED) for population in POPULATIONS}
    smallest, peer = costs[POPULATIONS[0]], f"of {POPULATIONS[0]:,}"
    for population, cost in costs.items():
        case = f"{ASKED} asked of {population:,} clients"
        yield _against(f"{case}, a round", cost, peer, smallest, population)
    for population, cost in costs.items():
        case, peer = f"data of {population:,} clients, generated and split", "with its rounds"
        yield Measurement(
            NAME,
            case,
            1000 * cost.data_seconds,
            f"{peer}, peak of the process",
            None,
            None,
            ours_mb=cost.data_mb,
            peer_mb=cost.peak_mb,
        )
    yield _one_percent()


def _one_percent() -> Measurement:
    """A client's part of a round with 1 % of the largest population, and with ASKED of it."""
    population = POPULATIONS[-1]
    asked = population // 100
    many, few = (_in_fresh_process(population, count) for count in (asked, ASKED))
    case = f"1 % of {population:,} clients, a round, by client"
    mine, theirs = 1000 * many.round_seconds / asked, 1000 * few.round_seconds / ASKED
    return Measurement(NAME, case, mine, f"{ASKED} asked, by client", theirs, theirs / mine)


def _against(case: str, cost: Cost, peer: str, smallest: Cost, population: int) -> Measurement:
    ratio = smallest.round_seconds / cost.round_seconds
    return Measurement(
        NAME,
        case,
        1000 * cost.round_seconds,
        peer,
        1000 * smallest.round_seconds,
        ratio,
        target=FLAT,
        holds=ratio >= FLAT,
        size=float(population),
    )


def _in_fresh_process(population: int, asked: int) -> Cost:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(cost_of, (population, asked))


def cost_of(population: int, asked: int) -> Cost:
    """Prepares the data and runs the rounds, in this process."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    log = generate(population, ITEMS, seed=0, mean_length=LENGTH, shortest=LENGTH)
    clients = {data.client: data for data in partition_by_user(leave_one_out(log))}
    data_seconds, data_mb = time.perf_counter() - start, high_water()
    with tempfile.TemporaryDirectory() as directory:
        seconds = _rounds(clients, asked, NodeStore(Path(directory) / "node.sqlite"))
    return Cost(data_seconds, statistics.median(seconds), data_mb, high_water())


def _rounds(clients: Mapping[str, ClientDataset], asked: int, store: NodeStore) -> list[float]:
    settings = Settings()
    settings = with_algorithm(settings, ALGORITHM)
    algorithm = assemble(settings, next(iter(clients.values())).item_ids).algorithm
    server, seconds, names = algorithm.server.init(), [], tuple(clients)
    last: dict[str, int] = {}
    for round_ in range(1, ROUNDS + 1):
        start = time.perf_counter()
        chosen = [clients[n] for n in sample_clients(names, asked / len(names), 0, round_)]
        load, save = partial(_load, store, last), partial(_save, store, last, round_)
        reply = update_clients(algorithm, server.broadcast(), chosen, load, save)
        server = algorithm.server.update(server, reply)
        last |= {data.client: round_ for data in chosen}
        seconds.append(time.perf_counter() - start)
    return seconds


def _load(
    store: NodeStore, last: Mapping[str, int], portion: Sequence[ClientDataset]
) -> Mapping[str, Params]:
    rounds = {data.client: last.get(data.client, 0) for data in portion}
    return store.load_many(RUN, ALGORITHM, rounds, dict.fromkeys(rounds, FINGERPRINT))


def _save(
    store: NodeStore, last: Mapping[str, int], round_: int, states: Mapping[str, Params]
) -> None:
    store.save(RUN, ALGORITHM, round_, dict.fromkeys(states, FINGERPRINT), states, last_rounds=last)
