"""What a node does: it evaluates, trains and remembers its clients. No Flower in here.

Everything that a public function here returns leaves the node.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from client_app.hosted_node import Node, assembly_of, with_algorithm
from pfsr_core.assembly.settings import flat_settings
from pfsr_core.data.client_dataset import SPLITS, ClientDataset, HeldOut
from pfsr_core.data.describe import describe
from pfsr_core.data.vocabulary import vocabulary_digest
from pfsr_core.evaluation.baselines import BASELINES
from pfsr_core.evaluation.client import no_users
from pfsr_core.evaluation.ranking import merge
from pfsr_core.federated.aggregation import merge_sums, unpack_shared
from pfsr_core.federated.algorithm import Broadcast, Reply, Sums
from pfsr_core.federated.evaluation import (
    evaluate_clients,
    evaluate_models,
    shows_full,
    without_views,
)
from pfsr_core.federated.model import Assembly
from pfsr_core.federated.protocol import (
    CLIENT,
    FINETUNED,
    NORMS,
    OUTCOME,
    PEAK_MEMORY,
    PER_CLIENT,
    PER_WAY,
    SECONDS,
    TRAINING,
    WEIGHT,
    Flat,
    Metrics,
    Order,
    prefixed,
)
from pfsr_core.federated.simulation import (
    States,
    finetune_clients,
    portions,
    state_of,
    update_clients,
)
from pfsr_core.items.modes import pooled_vectors
from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.params import Params, Shapes, pack, shapes_of
from pfsr_core.serving.node_store import Served, ServedClient

Evaluation = dict[str, dict[HeldOut, Sums]]
"""Sums by client and split."""


def hello(node: Node, config: Mapping[str, Any]) -> tuple[dict[str, Any], Metrics]:
    """(facts, numbers) about this node. Copies the private states of a warm start, once."""
    if config["warm-start"]:
        node.store.copy_states(config["warm-start"], config["run"])
    split = node.federation.split
    assembly = assembly_of(node, node.settings.algorithm.name)
    facts = {
        "partition": node.partition,
        "name": node.name,
        "partitions": node.partitions,
        "clients": [data.client for data in node.clients],
        "split-digest": split.digest,
        "items-digest": vocabulary_digest(split.item_ids),
        "num-items": len(split.item_ids),
        "describe": json.dumps(describe(node.federation.interactions, split)),
        # A shared item table has a row for each item: its ids are common knowledge then, only then.
        "item-ids": list(split.item_ids) if ITEMS in assembly.task.partition.shared else [],
        # Nodes with data of their own must make item vectors alike, but have items of their own.
        "vectors": assembly.vectors_digest if node.partitions else assembly.vectors_method,
    }
    covered = {
        f"{CLIENT}{s}/covered": [data.target_coverage(s) for data in node.clients] for s in SPLITS
    }
    users = [len(data.users) for data in node.clients]
    interactions = [data.num_interactions for data in node.clients]
    return facts, {f"{CLIENT}users": users, f"{CLIENT}interactions": interactions, **covered}


def baselines(node: Node) -> Metrics:
    """Sums of every baseline, fitted on each client alone, and the sums of each client."""
    sums: Metrics = {}
    nobody = no_users(node.settings.data.sampled_99).client_sums()
    for name, scorer_of in BASELINES.items():
        found: Evaluation = {data.client: {} for data in node.clients}
        for split in SPLITS:
            for one in evaluate_clients(scorer_of, node.clients, split):
                found[one.client][split] = one.client_sums()
        sums |= _evaluation_metrics(nobody, found, f"{name}/", node.clients)
    return sums


def train(node: Node, order: Order, received: Flat) -> tuple[Flat, Metrics]:
    """One round: evaluates what was received, trains the asked clients, remembers their states."""
    started = time.perf_counter()
    assembly, broadcast = _begin(node, order, received)
    asked = node.named(order.clients)
    load = partial(_states, node, order, assembly)
    metrics: Metrics = {}
    if order.evaluate:
        everybody = node.settings.run.evaluate_clients == "all"
        chosen = node.clients if everybody else asked
        found: Evaluation = {}
        for portion in portions(assembly.algorithm, broadcast.params, chosen):
            found |= _evaluated(node, assembly, broadcast, portion, load(portion))
        metrics |= _evaluation_metrics(_nobody(node, assembly), found)
    flat = pack({})
    if asked:
        save = partial(_save, node, order, assembly)
        reply = update_clients(assembly.algorithm, broadcast, asked, load, save)
        flat = pack(reply.params)
        metrics |= _reply_metrics(reply)
    return flat, {**metrics, **_cost(started)}


def finish(node: Node, order: Order, received: Flat) -> Metrics:
    """The last exchange: evaluates, finetunes, evaluates again and keeps the model for serving.

    For the view FULL clients are trained once more too, and what that gives is not kept.
    """
    started = time.perf_counter()
    assembly, broadcast = _begin(node, order, received)
    clients = node.named(order.clients)
    again = order.finetune or shows_full(assembly.algorithm, node.settings)
    measured = assembly if order.finetune else without_views(assembly)
    last: Evaluation = {}
    finetuned: Evaluation = {}
    outcomes: list[Sums] = []

    def served_clients() -> Iterator[tuple[str, ServedClient]]:
        """One portion of clients at a time, so that their number does not matter."""
        for portion in portions(assembly.algorithm, broadcast.params, clients):
            states = _states(node, order, assembly, portion)
            last.update(_evaluated(node, assembly, broadcast, portion, states))
            if again:
                trained = finetune_clients(assembly.algorithm, broadcast, states, portion)
                finetuned.update(_evaluated(node, measured, broadcast, portion, trained))
                states = trained if order.finetune else states
            if order.finetune:
                outcomes.extend(_outcomes(assembly, states))
            for data in portion:
                state = state_of(assembly.algorithm, states, data)
                histories = {user.user: user.all_items.tolist() for user in data.users}
                known = [user for user in data.users if len(user.times)]
                times = {user.user: user.times.tolist() for user in known}
                kept = times if assembly.task.reads_times else {}
                yield data.client, ServedClient(state, histories, kept)

    if order.install:
        node.store.install(_served(node, order, assembly, broadcast.params), served_clients())
    else:
        deque(served_clients(), maxlen=0)
    metrics = _evaluation_metrics(_nobody(node, assembly), last, clients=clients)
    if again:
        listed = clients if order.finetune else None
        metrics |= _evaluation_metrics(_nobody(node, measured), finetuned, FINETUNED, listed)
    if order.finetune:
        metrics |= prefixed(OUTCOME, merge_sums(outcomes))
    return {**metrics, **_cost(started)}


def sent_shapes(node: Node, algorithm: str) -> Shapes:
    """Names and shapes that may leave this node in a round of ``algorithm``."""
    return assembly_of(node, algorithm).algorithm.reply_shapes


def _begin(node: Node, order: Order, received: Flat) -> tuple[Assembly, Broadcast]:
    assembly = assembly_of(node, order.algorithm)
    shapes = shapes_of(assembly.algorithm.init().params)
    return assembly, Broadcast(unpack_shared(received, shapes), order.round, order.signals)


def _states(
    node: Node, order: Order, assembly: Assembly, clients: Sequence[ClientDataset]
) -> States:
    rounds = {data.client: order.last_rounds.get(data.client, 0) for data in clients}
    marks = {data.client: assembly.fingerprint_of(data) for data in clients}
    return node.store.load_many(order.run, order.algorithm, rounds, marks)


def _save(node: Node, order: Order, assembly: Assembly, states: States) -> None:
    marks = {name: assembly.fingerprint_of(node.hosted[name]) for name in states}
    node.store.save(order.run, order.algorithm, order.round, marks, states, order.last_rounds)


def _evaluated(
    node: Node,
    assembly: Assembly,
    broadcast: Broadcast,
    clients: Sequence[ClientDataset],
    states: States,
) -> Evaluation:
    """Sums of both splits by client, with the model that each would recommend with."""
    length = node.settings.model.max_length
    found = evaluate_models(assembly, length, broadcast.params, states, clients)
    return {
        data.client: {split: one[split].client_sums() for split in SPLITS}
        for data, one in zip(clients, found, strict=True)
    }


def _outcomes(assembly: Assembly, states: States) -> Iterator[Sums]:
    """How it ended for each client; said in the node's log, as only sums leave."""
    for client, state in states.items():
        told = assembly.algorithm.outcome(state)
        for name, value in told.items():
            sys.stderr.write(f"client {client}: {name} {value:g}\n")
        yield told


def _nobody(node: Node, assembly: Assembly) -> Sums:
    """The sums of no user, so that a node without clients answers like the others."""
    return no_users(node.settings.data.sampled_99, assembly.algorithm.views).client_sums()


def _evaluation_metrics(
    nobody: Sums,
    found: Evaluation,
    prefix: str = "",
    clients: Sequence[ClientDataset] | None = None,
) -> Metrics:
    """The sums of all and of ``nobody``, and lists with one number for each of ``clients``."""
    metrics: Metrics = {}
    for split in SPLITS:
        total = merge(nobody, *(found[name][split] for name in sorted(found)))
        metrics |= prefixed(f"{prefix}{split}/", total)
        if clients is not None:
            parts = [found[data.client][split] for data in clients]
            start = f"{prefix}{CLIENT}{split}/"
            names = [*PER_CLIENT, *(name for name in nobody if name.partition("/")[2] in PER_WAY)]
            metrics |= {start + name: [part[name] for part in parts] for name in names}
    return metrics


def _reply_metrics(reply: Reply) -> Metrics:
    return {
        WEIGHT: reply.weight,
        NORMS: list(reply.norms),
        **prefixed(TRAINING, reply.metrics),
    }


def _cost(started: float) -> Metrics:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {SECONDS: time.perf_counter() - started, PEAK_MEMORY: peak}


def _served(node: Node, order: Order, assembly: Assembly, shared: Params) -> Served:
    """The model without its clients, which follow one by one."""
    settings = with_algorithm(node.settings, order.algorithm)
    return Served(
        run=order.run,
        algorithm=order.algorithm,
        round=order.round - 1,  # the last exchange is no round
        fingerprint=assembly.fingerprint,
        settings=flat_settings(settings),
        shared=shared,
        item_ids=node.federation.split.item_ids,
        titles=node.federation.interactions.titles,
        texts=node.federation.catalogue.texts if assembly.vectors_digest else (),
        vectors=pooled_vectors(settings, node.federation.catalogue),
    )
