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

from client_app.hosted_node import Node
from pfsr_core.assembly.settings import with_algorithm
from pfsr_core.data.client_dataset import SPLITS, ClientDataset, HeldOut
from pfsr_core.data.describe import describe
from pfsr_core.data.vocabulary import vocabulary_digest
from pfsr_core.evaluation.baselines import BASELINES
from pfsr_core.evaluation.client import no_users
from pfsr_core.evaluation.metrics.registry import client_sum_keys, variant_sum_keys
from pfsr_core.evaluation.ranking import merge
from pfsr_core.federated.aggregation import merge_sums, unpack_shared
from pfsr_core.federated.algorithm import Broadcast, Sums
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
        """Loads the private states to continue from, of the clients that have one."""
        last_rounds = self.instruction.last_rounds
        client_rounds = {
            client_data.client: last_rounds.get(client_data.client, 0) for client_data in clients
        }
        client_fingerprints = {
            client_data.client: self.assembly.fingerprint_of(client_data) for client_data in clients
        }
        run_id, algorithm_name = self.instruction.run, self.instruction.algorithm
        return self.node.store.load_many(run_id, algorithm_name, client_rounds, client_fingerprints)

    def save_states(self, client_states: States) -> None:
        """Saves the states after this round beside those that the server last aggregated."""
        hosted_clients, instruction = self.node.hosted, self.instruction
        state_key = instruction.run, instruction.algorithm, instruction.round
        client_fingerprints = {
            client_name: self.assembly.fingerprint_of(hosted_clients[client_name])
            for client_name in client_states
        }
        self.node.store.save(
            *state_key, client_fingerprints, client_states, last_rounds=instruction.last_rounds
        )

    def evaluate(
        self,
        clients: Sequence[ClientDataset],
        client_states: States,
        assembly: Assembly | None = None,
    ) -> ClientSums:
        """Evaluates clients on both splits, each with the model that it would recommend with.

        Args:
            clients: The clients to evaluate.
            client_states: Private states by client; absent ones start anew.
            assembly: The model to evaluate with; None for that of the instruction.

        Returns:
            Sums of the metrics over the users of each client, by client and split.
        """
        client_models = ClientModels(
            assembly or self.assembly,
            self.node.settings.model.max_length,
            self.broadcast.params,
            client_states,
        )
        evaluations = evaluate_models(client_models, clients)
        return {
            client_data.client: {split: client_evaluation[split].client_sums() for split in SPLITS}
            for client_data, client_evaluation in zip(clients, evaluations, strict=True)
        }


def make_assignment(node: Node, instruction: Instruction, flat_params: Flat) -> Assignment:
    """Unpacks the received parameters for the model that the instruction names.

    Args:
        node: The node that carries the instruction out.
        instruction: What the server asks for.
        flat_params: The shared parameters, (values,) float32.

    Raises:
        ProtocolError: ``flat_params`` is not a vector of that model's shared parameters.
    """
    assembly = node.model(instruction.algorithm)
    shared_params = unpack_shared(flat_params, assembly.shared_shapes)
    broadcast = Broadcast(shared_params, instruction.round, instruction.signals)
    return Assignment(node, instruction, assembly, broadcast)


def register(node: Node, register_config: Mapping[str, Any]) -> tuple[dict[str, Any], Metrics]:
    """Describes this node to the server; copies the private states of a warm start, once.

    Args:
        node: The node.
        register_config: The run's id under "run", the one to start from under "warm-start".

    Returns:
        Facts about the node and its data, and lists with a number for each client.
    """
    if register_config["warm-start"]:
        node.store.copy_states(register_config["warm-start"], register_config["run"])
    data_split = node.dataset.split
    assembly = node.model(node.settings.algorithm.name)
    node_facts = {
        "partition": node.partition,
        "name": node.name,
        "partitions": node.partitions,
        "clients": [client_data.client for client_data in node.clients],
        "split-digest": data_split.digest,
        "items-digest": vocabulary_digest(data_split.item_ids),
        "num-items": len(data_split.item_ids),
        "describe": json.dumps(describe(node.dataset.interactions, data_split)),
        # A shared item table has a row for each item: its ids are common knowledge then, only then.
        "item-ids": list(data_split.item_ids) if ITEMS in assembly.task.partition.shared else [],
        # Nodes with data of their own must make item vectors alike, but have items of their own.
        "vectors": assembly.vectors_digest if node.partitions else assembly.vectors_method,
    }
    covered_counts = {
        f"{CLIENT}{split_name}/covered": [
            client_data.target_coverage(split_name) for client_data in node.clients
        ]
        for split_name in SPLITS
    }
    user_counts = [len(client_data.users) for client_data in node.clients]
    interaction_counts = [client_data.num_interactions for client_data in node.clients]
    return node_facts, {
        f"{CLIENT}users": user_counts,
        f"{CLIENT}interactions": interaction_counts,
        **covered_counts,
    }


def baselines(node: Node) -> Metrics:
    """Evaluates the model-free baselines, each fitted on each client alone.

    Returns:
        Sums over all clients and of each client, names beginning with "<baseline>/".
    """
    baseline_metrics: Metrics = {}
    empty_sums = no_users(node.settings.data.sampled_99).client_sums()
    for baseline_name, scorer_of in BASELINES.items():
        sums_by_client: ClientSums = {client_data.client: {} for client_data in node.clients}
        for split_name in SPLITS:
            for evaluation in evaluate_clients(scorer_of, node.clients, split_name):
                sums_by_client[evaluation.client][split_name] = evaluation.client_sums()
        baseline_metrics |= _evaluation_metrics(
            empty_sums, sums_by_client, f"{baseline_name}/", node.clients
        )
    return baseline_metrics


def train(node: Node, instruction: Instruction, flat_params: Flat) -> tuple[Flat, Metrics]:
    """Does the node's part of a round: evaluates, trains the asked clients, saves their states.

    Args:
        node: The node.
        instruction: The clients to train, and whether to evaluate the received model first.
        flat_params: The shared parameters, (values,) float32.

    Returns:
        The mean of the clients' updates, (values,) float32 (empty where none trains), and metrics.
    """
    start_time = time.perf_counter()
    assignment = make_assignment(node, instruction, flat_params)
    assembly, broadcast = assignment.assembly, assignment.broadcast
    asked_clients = node.named(instruction.clients)
    round_metrics: Metrics = {}
    if instruction.evaluate:
        evaluates_all = node.settings.run.evaluate_clients == "all"
        evaluated = node.clients if evaluates_all else asked_clients
        client_sums: ClientSums = {}
        for portion in portions(assembly.algorithm, broadcast.params, evaluated):
            client_sums |= assignment.evaluate(portion, assignment.load_states(portion))
        round_metrics |= _evaluation_metrics(_empty_sums(node, assembly), client_sums)
    flat_update = pack({})
    if asked_clients:
        reply = update_clients(
            assembly.algorithm,
            broadcast,
            asked_clients,
            assignment.load_states,
            assignment.save_states,
        )
        flat_update = pack(reply.params)
        round_metrics |= {WEIGHT: reply.weight, NORMS: list(reply.norms)}
        round_metrics |= prefixed(TRAINING, reply.metrics)
    return flat_update, {**round_metrics, **_cost(start_time)}


def finish(node: Node, instruction: Instruction, flat_params: Flat) -> Metrics:
    """The last exchange: evaluates, finetunes, evaluates again and keeps the model for serving.

    For the variant FULL clients are trained once more too, and the trained states are discarded.

    Args:
        node: The node.
        instruction: The clients concerned, and whether to finetune and to install the model.
        flat_params: The shared parameters to serve, (values,) float32.

    Returns:
        Sums before and after finetuning, over all clients and of each.
    """
    start_time = time.perf_counter()
    assignment = make_assignment(node, instruction, flat_params)
    assembly, broadcast = assignment.assembly, assignment.broadcast
    clients = node.named(instruction.clients)
    evaluates_again = instruction.finetune or shows_full(
        assembly.algorithm, node.settings.run.evaluate_clients
    )
    finetuned_assembly = assembly if instruction.finetune else without_variants(assembly)
    last_sums: ClientSums = {}
    finetuned_sums: ClientSums = {}
    outcome_sums: list[Sums] = []

    def served_clients() -> Iterator[tuple[str, ServedClient]]:
        """One portion of clients at a time, so that their number does not matter."""
        for portion in portions(assembly.algorithm, broadcast.params, clients):
            client_states = assignment.load_states(portion)
            last_sums.update(assignment.evaluate(portion, client_states))
            if evaluates_again:
                trained_states = finetune_clients(
                    assembly.algorithm, broadcast, client_states, portion
                )
                finetuned_sums.update(
                    assignment.evaluate(portion, trained_states, finetuned_assembly)
                )
                client_states = trained_states if instruction.finetune else client_states
            if instruction.finetune:
                outcome_sums.extend(_outcomes(assembly, client_states))
            for client_data in portion:
                client_state = state_of(assembly.algorithm, client_states, client_data)
                yield client_data.client, served_client(assembly, client_data, client_state)

    if instruction.install:
        node.store.install(_served_model(assignment), served_clients())
    else:
        deque(served_clients(), maxlen=0)
    finish_metrics = _evaluation_metrics(_empty_sums(node, assembly), last_sums, clients=clients)
    if evaluates_again:
        listed_clients = clients if instruction.finetune else None
        finish_metrics |= _evaluation_metrics(
            _empty_sums(node, finetuned_assembly), finetuned_sums, FINETUNED, listed_clients
        )
    if instruction.finetune:
        finish_metrics |= prefixed(OUTCOME, merge_sums(outcome_sums))
    return {**finish_metrics, **_cost(start_time)}


def _outcomes(assembly: Assembly, client_states: States) -> Iterator[Sums]:
    """How training ended for each client; written to the node's log, as only sums leave."""
    for client_name, client_state in client_states.items():
        client_outcome = assembly.algorithm.personalization.outcome(client_state)
        for outcome_name, outcome_value in client_outcome.items():
            sys.stderr.write(f"client {client_name}: {outcome_name} {outcome_value:g}\n")
        yield client_outcome


def _empty_sums(node: Node, assembly: Assembly) -> Sums:
    """The sums of no user, so that a node without clients answers like the others."""
    return no_users(
        node.settings.data.sampled_99, assembly.algorithm.personalization.variants
    ).client_sums()


def _evaluation_metrics(
    empty_sums: Sums,
    client_sums: ClientSums,
    name_prefix: str = "",
    clients: Sequence[ClientDataset] | None = None,
) -> Metrics:
    """The sums over all clients and ``empty_sums``; lists with a number for each of ``clients``."""
    metrics: Metrics = {}
    for split in SPLITS:
        total_sums = merge(empty_sums, *(client_sums[name][split] for name in sorted(client_sums)))
        metrics |= prefixed(f"{name_prefix}{split}/", total_sums)
        if clients is not None:
            listed_sums = [client_sums[client_data.client][split] for client_data in clients]
            client_prefix = f"{name_prefix}{CLIENT}{split}/"
            of_variants = variant_sum_keys()
            metric_names = [
                *client_sum_keys(),
                *(name for name in empty_sums if name.partition("/")[2] in of_variants),
            ]
            metrics |= {
                client_prefix + name: [client_part[name] for client_part in listed_sums]
                for name in metric_names
            }
    return metrics


def _cost(start_time: float) -> Metrics:
    peak_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {SECONDS: time.perf_counter() - start_time, PEAK_MEMORY: peak_memory}


def _served_model(assignment: Assignment) -> Served:
    """The model without its clients, which follow one by one."""
    node, instruction = assignment.node, assignment.instruction
    return served_model(
        assignment.assembly,
        assignment.broadcast.params,
        with_algorithm(node.settings, instruction.algorithm),
        node.dataset,
        run_name=instruction.run,
        round_=instruction.round - 1,  # the last exchange is no round
    )
