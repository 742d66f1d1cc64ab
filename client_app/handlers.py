"""What a node does when it is asked: it registers, evaluates, trains and saves its clients' states.

No Flower in here. Everything that a public function returns leaves the node.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from client_app.hosted_node import Node, with_algorithm
from pfsr_core.data.client_dataset import SPLITS, ClientDataset, HeldOut
from pfsr_core.data.describe import describe
from pfsr_core.data.vocabulary import vocabulary_digest
from pfsr_core.evaluation.baselines import BASELINES
from pfsr_core.evaluation.client import no_users
from pfsr_core.evaluation.metrics.registry import client_sum_keys, variant_sum_keys
from pfsr_core.evaluation.ranking import merge
from pfsr_core.federated.aggregation import merge_sums, unpack_shared
from pfsr_core.federated.algorithm import Broadcast, Reply, Sums
from pfsr_core.federated.evaluation import (
    ClientModels,
    evaluate_clients,
    evaluate_models,
    shows_full,
    without_variants,
)
from pfsr_core.federated.model import Assembly
from pfsr_core.federated.protocol import (
    CLIENT,
    FINETUNED,
    NORMS,
    OUTCOME,
    PEAK_MEMORY,
    SECONDS,
    TRAINING,
    WEIGHT,
    Flat,
    Instruction,
    Metrics,
    prefixed,
)
from pfsr_core.federated.simulation import (
    States,
    finetune_clients,
    portions,
    state_of,
    update_clients,
)
from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.params import pack
from pfsr_core.serving.prepare import served_client, served_model
from pfsr_core.serving.served_model import Served, ServedClient

ClientSums = dict[str, dict[HeldOut, Sums]]
"""Sums by client and split."""


@dataclass(frozen=True)
class Assignment:
    """An instruction with what carries it out: the node, its assembled model, what was received."""

    node: Node
    instruction: Instruction
    assembly: Assembly
    broadcast: Broadcast

    def load_states(self, clients: Sequence[ClientDataset]) -> States:
        """The private states to continue from, of the clients that have one."""
        last_rounds = self.instruction.last_rounds
        rounds = {data.client: last_rounds.get(data.client, 0) for data in clients}
        fingerprints = {data.client: self.assembly.fingerprint_of(data) for data in clients}
        run, algorithm = self.instruction.run, self.instruction.algorithm
        return self.node.store.load_many(run, algorithm, rounds, fingerprints)

    def save_states(self, states: States) -> None:
        """Saves the states after this round beside those that the server last aggregated."""
        hosted, instruction = self.node.hosted, self.instruction
        key = instruction.run, instruction.algorithm, instruction.round
        fingerprints = {name: self.assembly.fingerprint_of(hosted[name]) for name in states}
        self.node.store.save(*key, fingerprints, states, last_rounds=instruction.last_rounds)

    def evaluate(
        self, clients: Sequence[ClientDataset], states: States, assembly: Assembly | None = None
    ) -> ClientSums:
        """Both splits by client, with the model that each would recommend with."""
        length = self.node.settings.model.max_length
        models = ClientModels(assembly or self.assembly, length, self.broadcast.params, states)
        evaluations = evaluate_models(models, clients)
        return {
            data.client: {split: one[split].client_sums() for split in SPLITS}
            for data, one in zip(clients, evaluations, strict=True)
        }


def make_assignment(node: Node, instruction: Instruction, received: Flat) -> Assignment:
    """Unpacks what was received for the model that the instruction names.

    Raises:
        ProtocolError: it is not a vector of that model's shared parameters.
    """
    assembly = node.model(instruction.algorithm)
    params = unpack_shared(received, assembly.shared_shapes)
    broadcast = Broadcast(params, instruction.round, instruction.signals)
    return Assignment(node, instruction, assembly, broadcast)


def register(node: Node, config: Mapping[str, Any]) -> tuple[dict[str, Any], Metrics]:
    """(facts, numbers) about this node. Copies the private states of a warm start, once."""
    if config["warm-start"]:
        node.store.copy_states(config["warm-start"], config["run"])
    split = node.dataset.split
    assembly = node.model(node.settings.algorithm.name)
    facts = {
        "partition": node.partition,
        "name": node.name,
        "partitions": node.partitions,
        "clients": [data.client for data in node.clients],
        "split-digest": split.digest,
        "items-digest": vocabulary_digest(split.item_ids),
        "num-items": len(split.item_ids),
        "describe": json.dumps(describe(node.dataset.interactions, split)),
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
    metrics: Metrics = {}
    empty = no_users(node.settings.data.sampled_99).client_sums()
    for name, scorer_of in BASELINES.items():
        sums: ClientSums = {data.client: {} for data in node.clients}
        for split in SPLITS:
            for one in evaluate_clients(scorer_of, node.clients, split):
                sums[one.client][split] = one.client_sums()
        metrics |= _evaluation_metrics(empty, sums, f"{name}/", node.clients)
    return metrics


def train(node: Node, instruction: Instruction, received: Flat) -> tuple[Flat, Metrics]:
    """One round: evaluates what was received, trains the asked clients, saves their states."""
    started = time.perf_counter()
    work = make_assignment(node, instruction, received)
    asked = node.named(instruction.clients)
    metrics: Metrics = {}
    if instruction.evaluate:
        chosen = node.clients if node.settings.run.evaluate_clients == "all" else asked
        sums: ClientSums = {}
        for portion in portions(work.assembly.algorithm, work.broadcast.params, chosen):
            sums |= work.evaluate(portion, work.load_states(portion))
        metrics |= _evaluation_metrics(_empty_sums(node, work.assembly), sums)
    flat = pack({})
    if asked:
        reply = update_clients(
            work.assembly.algorithm, work.broadcast, asked, work.load_states, work.save_states
        )
        flat = pack(reply.params)
        metrics |= _reply_metrics(reply)
    return flat, {**metrics, **_cost(started)}


def finish(node: Node, instruction: Instruction, received: Flat) -> Metrics:
    """The last exchange: evaluates, finetunes, evaluates again and keeps the model for serving.

    For the variant FULL clients are trained once more too, and what that gives is not kept.
    """
    started = time.perf_counter()
    work = make_assignment(node, instruction, received)
    assembly, broadcast = work.assembly, work.broadcast
    clients = node.named(instruction.clients)
    again = instruction.finetune or shows_full(
        assembly.algorithm, node.settings.run.evaluate_clients
    )
    measured = assembly if instruction.finetune else without_variants(assembly)
    last: ClientSums = {}
    finetuned: ClientSums = {}
    outcomes: list[Sums] = []

    def served_clients() -> Iterator[tuple[str, ServedClient]]:
        """One portion of clients at a time, so that their number does not matter."""
        for portion in portions(assembly.algorithm, broadcast.params, clients):
            states = work.load_states(portion)
            last.update(work.evaluate(portion, states))
            if again:
                trained = finetune_clients(assembly.algorithm, broadcast, states, portion)
                finetuned.update(work.evaluate(portion, trained, measured))
                states = trained if instruction.finetune else states
            if instruction.finetune:
                outcomes.extend(_outcomes(assembly, states))
            for data in portion:
                state = state_of(assembly.algorithm, states, data)
                yield data.client, served_client(assembly, data, state)

    if instruction.install:
        node.store.install(_served_model(work), served_clients())
    else:
        deque(served_clients(), maxlen=0)
    metrics = _evaluation_metrics(_empty_sums(node, assembly), last, clients=clients)
    if again:
        listed = clients if instruction.finetune else None
        metrics |= _evaluation_metrics(_empty_sums(node, measured), finetuned, FINETUNED, listed)
    if instruction.finetune:
        metrics |= prefixed(OUTCOME, merge_sums(outcomes))
    return {**metrics, **_cost(started)}


def _outcomes(assembly: Assembly, states: States) -> Iterator[Sums]:
    """How training ended for each client: written to the node's log, as only sums leave."""
    for client, state in states.items():
        outcome = assembly.algorithm.personalization.outcome(state)
        for name, value in outcome.items():
            sys.stderr.write(f"client {client}: {name} {value:g}\n")
        yield outcome


def _empty_sums(node: Node, assembly: Assembly) -> Sums:
    """The sums of no user, so that a node without clients answers like the others."""
    return no_users(
        node.settings.data.sampled_99, assembly.algorithm.personalization.variants
    ).client_sums()


def _evaluation_metrics(
    empty: Sums,
    sums: ClientSums,
    prefix: str = "",
    clients: Sequence[ClientDataset] | None = None,
) -> Metrics:
    """The sums of all clients and of ``empty``, and lists with a number for each of ``clients``."""
    metrics: Metrics = {}
    for split in SPLITS:
        total = merge(empty, *(sums[name][split] for name in sorted(sums)))
        metrics |= prefixed(f"{prefix}{split}/", total)
        if clients is not None:
            listed = [sums[data.client][split] for data in clients]
            start = f"{prefix}{CLIENT}{split}/"
            of_variants = variant_sum_keys()
            names = [
                *client_sum_keys(),
                *(name for name in empty if name.partition("/")[2] in of_variants),
            ]
            metrics |= {start + name: [part[name] for part in listed] for name in names}
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


def _served_model(work: Assignment) -> Served:
    """The model without its clients, which follow one by one."""
    node, instruction = work.node, work.instruction
    return served_model(
        work.assembly,
        work.broadcast.params,
        with_algorithm(node.settings, instruction.algorithm),
        node.dataset,
        run_name=instruction.run,
        round_=instruction.round - 1,  # the last exchange is no round
    )
