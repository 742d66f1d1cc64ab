"""PFedRec: dual personalization (Zhang et al., IJCAI 2023). No history, no user vector.

    client   for every batch of its interactions and of negatives drawn this round:
                 (w, b) <- (w, b) - eta_1 grad BCE          the score function, which stays
                 E[j]   <- E[j] - eta_2 grad BCE            with the new score function
             reply E, the whole table, with weight 1
    server   E <- mean over the clients, or a longer step in its direction

A client recommends with its own score function and its own last view of the items: the rows that
its last training touched as that left them, and every other row as last received. So a client
that was absent sees the newest table but for the rows it touched when it last took part. Those rows
are all that is kept of a table, under ``personal/``. It trains from the received table alone.

Other than in the published code the bias stays at home (nothing uses it elsewhere), and a step on a
row is the mean over the row's own samples (``ScorerTraining.item_step``). Two views stand beside
this model: the averaged table with the score function that all started from ("global"), and with
the client's own ("global+private").

A reply is dense, and of one size and weight for all. Yet a single client's reply gives its history
away: the rows that differ from what was sent are its items and their negatives, and the sign of the
difference tells which is which; the count of samples beside the loss says how long it is. Only sums
over many clients should be seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pfsr_core.algorithms.fed_avg import loss_metrics
from pfsr_core.algorithms.server_optimizers import ServerStep, average
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated.algorithm import (
    GLOBAL,
    WITH_PRIVATE,
    Broadcast,
    ClientUpdate,
    FederatedAlgorithm,
    ServerState,
)
from pfsr_core.models.item_scorer import CODES, ROWS, head_of
from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.params import Params, shapes_of
from pfsr_core.training.batched_item_scorer import Trained, train_scorers
from pfsr_core.training.item_scorer import (
    ScorerTraining,
    TrainingPairs,
    draw_training_pairs,
    rows_of,
    train_scorer,
)
from pfsr_core.training.task import Task


def pfedrec(
    task: Task, training: ScorerTraining, *, step: ServerStep = average
) -> FederatedAlgorithm:
    """PFedRec over an item scorer whose table is shared and whose score function is private."""
    start = task.partition
    shapes, common = shapes_of(start.init_shared()), start.init_private(ClientDataset("", (), ()))

    def init_client(data: ClientDataset) -> Params:
        rows = torch.zeros(0, shapes[ITEMS][1])
        return {**start.init_private(data), ROWS: rows, CODES: torch.zeros(0, dtype=torch.int32)}

    def local(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[tuple[TrainingPairs, Trained]]:
        round_, table = broadcast.round, broadcast.params[ITEMS]
        client_pairs = [draw_training_pairs(training, data, round_) for data in datasets]
        heads = [head_of(state) for state in states]
        if training.local.engine == "loop":
            starts = zip(heads, client_pairs, strict=True)
            found = [_alone(training, broadcast, head, pairs) for head, pairs in starts]
        else:
            found = train_scorers(training, table, heads, client_pairs, round_)
        return list(zip(client_pairs, found, strict=True))

    def client_updates(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[ClientUpdate]:
        return [_update(broadcast, *one) for one in local(broadcast, states, datasets)]

    def finetunes(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[Params]:
        return [_state(*one) for one in local(broadcast, states, datasets)]

    return FederatedAlgorithm(
        init=lambda: ServerState(start.init_shared()),
        init_client=init_client,
        client_updates=client_updates,
        server_update=lambda server, reply: step(server, reply.params),
        personalize=_own_view,
        reply_shapes=shapes,
        finetunes=finetunes,
        views={
            GLOBAL: lambda shared, _state: {**shared, **common},
            WITH_PRIVATE: lambda shared, state: {**shared, **head_of(state)},
        },
    )


def _alone(
    training: ScorerTraining, broadcast: Broadcast, head: Params, pairs: TrainingPairs
) -> Trained:
    whole, losses = train_scorer(training, {**broadcast.params, **head}, pairs, broadcast.round)
    return head_of(whole), rows_of(whole[ITEMS], pairs.codes), losses


def _update(broadcast: Broadcast, pairs: TrainingPairs, trained: Trained) -> ClientUpdate:
    _, rows, losses = trained
    table = broadcast.params[ITEMS]
    norm = torch.linalg.vector_norm(rows - rows_of(table, pairs.codes))
    return ClientUpdate(
        params={ITEMS: table.index_copy(0, torch.from_numpy(pairs.codes), rows)},
        weight=1.0,
        metrics=loss_metrics(losses),
        state=_state(pairs, trained),
        norm=float(norm),
    )


def _state(pairs: TrainingPairs, trained: Trained) -> Params:
    head, rows, _ = trained
    return {**head, ROWS: rows, CODES: torch.from_numpy(pairs.codes.astype("int32"))}


def _own_view(shared: Params, state: Params) -> Params:
    table = shared[ITEMS].index_copy(0, state[CODES].long(), state[ROWS].to(shared[ITEMS].dtype))
    return {ITEMS: table, **head_of(state)}
