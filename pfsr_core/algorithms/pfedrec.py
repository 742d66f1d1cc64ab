"""PFedRec: dual personalization (Zhang et al., IJCAI 2023). No history, no user vector.

    client   for every batch of its interactions and of negatives drawn this round:
                 (w, b) <- (w, b) - eta_1 grad BCE          the score function, which stays
                 E[j]   <- E[j] - eta_2 grad BCE            with the new score function
             reply E, the whole table, with weight 1
    server   E <- mean over the clients, or a longer step in its direction

A client recommends with its own score function and its own last table: the rows that its last
training touched as that left them, and every other row as last received. So a client that was
absent sees the newest table but for the rows it touched when it last took part. Those rows are all
that is kept of a table, under ``personal/``. It trains from the received table alone.

Other than in the published code the bias stays on the client (nothing else uses it), and a step on
a row is the mean over the row's own samples (``algorithm.pfedrec.item-step``). Two variants stand
beside this model: the averaged table with the score function that all started from ("global"), and
with the client's own ("global+private").

A reply is dense, and of one size and weight for all. Yet a single client's reply gives its history
away: the rows that differ from what was sent are its items and their negatives, and the sign of the
difference separates the two; the count of samples beside the loss gives its length. Only sums
over many clients should be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from pfsr_core.algorithms.fed_avg import loss_metrics
from pfsr_core.algorithms.server_optimizers import PLAIN_MEAN, Averaging
from pfsr_core.algorithms.spec import AlgorithmSpec, ItemDemand, Labels
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated.algorithm import (
    GLOBAL,
    WITH_PRIVATE,
    Broadcast,
    ClientSide,
    ClientUpdate,
    FederatedAlgorithm,
    Personalization,
    ServerSide,
    ServerState,
)
from pfsr_core.models.item_scorer import CODES, ROWS, head_of
from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.params import Params, shapes_of
from pfsr_core.settings.fields import setting
from pfsr_core.training.batched_item_scorer import TrainedScorer, train_scorers
from pfsr_core.training.item_scorer import (
    TrainingPairs,
    draw_training_pairs,
    item_scorer_task,
    rows_of,
    train_scorer,
)
from pfsr_core.training.local import LocalTraining
from pfsr_core.training.task import Task


@dataclass(frozen=True)
class PFedRecSettings:
    """Steps on item rows, and sampled negatives."""

    item_step: str = setting(
        "row",
        "how the gradients of an item's row are averaged in a step: row, over the samples of that "
        "item; batch, over the whole batch, as published",
        choices=("row", "batch"),
    )
    negatives_per_positive: int = setting(
        4, "number of sampled negative items for each training interaction", low=0
    )


def pfedrec(
    task: Task,
    local_training: LocalTraining,
    settings: PFedRecSettings,
    averaging: Averaging = PLAIN_MEAN,
) -> FederatedAlgorithm:
    """PFedRec over an item scorer whose table is shared and whose score function is private.

    All clients have the same weight; ``averaging.weight_power`` is not read.
    """
    shared_shapes = shapes_of(task.partition.init_shared())
    first_score_function = task.partition.init_private(ClientDataset("", (), ()))
    draw_pairs = partial(
        draw_training_pairs,
        local_training,
        negatives_per_positive=settings.negatives_per_positive,
        by_row=settings.item_step == "row",
    )

    def init_client(client_data: ClientDataset) -> Params:
        own_rows = torch.zeros(0, shared_shapes[ITEMS][1])
        own_codes = torch.zeros(0, dtype=torch.int32)
        return {**task.partition.init_private(client_data), ROWS: own_rows, CODES: own_codes}

    def train_all(
        broadcast: Broadcast,
        client_states: Sequence[Params],
        client_datasets: Sequence[ClientDataset],
    ) -> list[tuple[TrainingPairs, TrainedScorer]]:
        round_, shared_table = broadcast.round, broadcast.params[ITEMS]
        client_pairs = [
            draw_pairs(client_data=client_data, round_=round_) for client_data in client_datasets
        ]
        score_functions = [head_of(client_state) for client_state in client_states]
        if local_training.settings.engine == "loop":
            starts = zip(score_functions, client_pairs, strict=True)
            trained_scorers = [
                _train_by_loop(local_training, broadcast, *client_start) for client_start in starts
            ]
        else:
            trained_scorers = train_scorers(
                local_training, shared_table, score_functions, client_pairs, round_
            )
        return list(zip(client_pairs, trained_scorers, strict=True))

    def updates(
        broadcast: Broadcast,
        client_states: Sequence[Params],
        client_datasets: Sequence[ClientDataset],
    ) -> list[ClientUpdate]:
        return [
            _update(broadcast, *client_result)
            for client_result in train_all(broadcast, client_states, client_datasets)
        ]

    def finetunes(
        broadcast: Broadcast,
        client_states: Sequence[Params],
        client_datasets: Sequence[ClientDataset],
    ) -> list[Params]:
        return [
            _state(*client_result)
            for client_result in train_all(broadcast, client_states, client_datasets)
        ]

    return FederatedAlgorithm(
        client=ClientSide(init_client, updates, shared_shapes, finetunes),
        server=ServerSide(
            init=lambda: ServerState(task.partition.init_shared()),
            update=lambda server, reply: averaging.step(server, reply.params),
        ),
        personalization=Personalization(
            _own_model,
            variants={
                GLOBAL: lambda shared, _state: {**shared, **first_score_function},
                WITH_PRIVATE: lambda shared, state: {**shared, **head_of(state)},
            },
        ),
    )


def _train_by_loop(
    local_training: LocalTraining,
    broadcast: Broadcast,
    score_function: Params,
    client_pairs: TrainingPairs,
) -> TrainedScorer:
    params, loss_sum = train_scorer(
        local_training, {**broadcast.params, **score_function}, client_pairs, broadcast.round
    )
    return head_of(params), rows_of(params[ITEMS], client_pairs.codes), loss_sum


def _update(
    broadcast: Broadcast, client_pairs: TrainingPairs, trained_scorer: TrainedScorer
) -> ClientUpdate:
    _, trained_rows, loss_sum = trained_scorer
    shared_table = broadcast.params[ITEMS]
    update_norm = torch.linalg.vector_norm(trained_rows - rows_of(shared_table, client_pairs.codes))
    return ClientUpdate(
        params={
            ITEMS: shared_table.index_copy(0, torch.from_numpy(client_pairs.codes), trained_rows)
        },
        weight=1.0,
        metrics=loss_metrics(loss_sum),
        state=_state(client_pairs, trained_scorer),
        norm=float(update_norm),
    )


def _state(client_pairs: TrainingPairs, trained_scorer: TrainedScorer) -> Params:
    score_function, trained_rows, _ = trained_scorer
    return {
        **score_function,
        ROWS: trained_rows,
        CODES: torch.from_numpy(client_pairs.codes.astype("int32")),
    }


def _own_model(shared_params: Params, client_state: Params) -> Params:
    merged_table = shared_params[ITEMS].index_copy(
        0, client_state[CODES].long(), client_state[ROWS].to(shared_params[ITEMS].dtype)
    )
    return {ITEMS: merged_table, **head_of(client_state)}


PFEDREC = AlgorithmSpec(
    pfedrec,
    PFedRecSettings,
    make_task=lambda model, item_ids, seed: item_scorer_task(
        item_ids, model.embedding_dim, seed, model.item_std
    ),
    items=ItemDemand(
        "shared", "averages the item table", "; which items clients have then reaches the server"
    ),
    unread=dict.fromkeys(
        (
            "train.semantic-share",
            "train.negatives",
            "model.compressor",
            "model.personal-memory",
        ),
        "with pfedrec, which predicts no next item",
    ),
    labels=Labels(loss="Binary cross-entropy of items and sampled negatives"),
)
