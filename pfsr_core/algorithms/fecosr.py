"""FeCoSR: markets that learn together and none that loses by it (after arXiv 2604.13573).

    stage 1   pretrain, the rounds: FedAvg of encoder and projection with semantic soft targets
              (``train.semantic-share``) and weights n_m^power. Item rows are never sent, and the
              market adapter stays at zero: item vectors are the projected public ones.
    stage 2   finetune, on the node, nothing is sent: from the shared model of the chosen round,
              with hard targets, of the parts that ``mode`` names. The epoch with the best
              validation NDCG@10 is kept; epoch 0 is stage 1's model, as the adapter starts at zero.
    rule      a market ships the result only if it beats, on its validation NDCG@10, what the market
              reaches alone; else it ships that.

The rule's model alone has the same parts, batches and epochs: it is trained beside every round,
with hard targets, as nothing has to agree with other markets, kept at its best round, and finetuned
in the same way. That doubles the cost of a round on the node, and the node keeps two encoders more.
Of its parameters nothing is sent. Sums of its figures are, as of every view: each round, and by
client after the last one, when which of the two is shipped is counted as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pfsr_core.algorithms.fed_avg import fed_avg, update_of
from pfsr_core.algorithms.server_step import ServerStep, average
from pfsr_core.batched_training import Trained, train_clients
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.evaluation.client import evaluate_client, user_values
from pfsr_core.federated import Broadcast, ClientUpdate, FederatedAlgorithm, Sums
from pfsr_core.fisher import Masks
from pfsr_core.local_training import Job, LocalTraining, Task, stream_seed
from pfsr_core.params import Params, select
from pfsr_core.scoring import make_scorer

FEDERATED, LOCAL = "federated", "local"  # views; in a finetuned state also prefixes
ALONE, ALONE_BEST = "alone", "alone-best"  # prefixes: the model alone now, and at its best round
SCORE = "alone-best-score"
SHIPS = "ships-federated"
SHIPPED = "shipped-federated"
"""Sum of an outcome: how many clients ship the federated result."""


@dataclass(frozen=True)
class Finetuning:
    """Stage 2. ``mode``: "adapter" trains the adapter alone, "all" all but it, "all+adapter" both.

    ``step``: step sizes over those of the first round. ``safety_rule``: whether a model alone is
    trained beside, and the better one shipped.
    """

    mode: str = "all+adapter"
    epochs: int = 10
    step: float = 1.0
    safety_rule: bool = True


def fecosr(
    task: Task,
    training: LocalTraining,
    *,
    finetuning: Finetuning = Finetuning(),
    step: ServerStep = average,
    weight_power: float = 0.5,
) -> FederatedAlgorithm:
    """FeCoSR over a task whose private part is an adapter that starts at zero."""
    shared, private = task.partition.shared, task.partition.private
    hard = replace(task, soft_targets=None)
    moves = {"adapter": private, "all": shared, "all+adapter": shared | private}[finetuning.mode]

    def init_client(data: ClientDataset) -> Params:
        alone = _named(ALONE, task.init_shared()) if finetuning.safety_rule else {}
        return {**task.init_private(data), **alone}

    def pretrained(
        some: Task, starts: Sequence[Params], datasets: Sequence[ClientDataset], round_: int
    ) -> list[Trained]:
        streams = [stream_seed(training.seed, "client", data.client, round_) for data in datasets]
        jobs = [
            Job(start, data, stream, frozen=_all_of(start, private))
            for start, data, stream in zip(starts, datasets, streams, strict=True)
        ]
        return train_clients(some, training.in_round(round_), jobs)

    def client_updates(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[ClientUpdate]:
        starts = [{**broadcast.params, **select(state, private)} for state in states]
        trained = pretrained(task, starts, datasets, broadcast.round)
        alone: Sequence[Params] = [{}] * len(states)
        if finetuning.safety_rule:
            alone = trained_alone(states, datasets, broadcast.round)
        updates = [
            update_of(task, broadcast, *one, data, weight_power)
            for one, data in zip(trained, datasets, strict=True)
        ]
        return [
            replace(update, state={**update.state, **own})
            for update, own in zip(updates, alone, strict=True)
        ]

    def trained_alone(
        states: Sequence[Params], datasets: Sequence[ClientDataset], round_: int
    ) -> list[Params]:
        """What the states hold of the models alone, a round later."""
        starts = [{**_under(state, ALONE), **select(state, private)} for state in states]
        found = pretrained(hard, starts, datasets, round_)
        return [
            after_round(state, whole, data)
            for state, (whole, _), data in zip(states, found, datasets, strict=True)
        ]

    def after_round(state: Params, whole: Params, data: ClientDataset) -> Params:
        score, model = valid(whole, data), select(whole, shared)
        best, known = _under(state, ALONE_BEST), state.get(SCORE)
        if known is None or score > known:
            best, known = model, score
        return {**_named(ALONE, model), **_named(ALONE_BEST, best), SCORE: known}

    def best_alone(state: Params) -> Params:
        return {**(_under(state, ALONE_BEST) or _under(state, ALONE)), **select(state, private)}

    def valid(whole: Params, data: ClientDataset) -> Tensor:
        """Validation NDCG@10 (1,); 0 without users."""
        scorer = make_scorer(task, whole, data, training.max_length)
        values = user_values([evaluate_client(scorer, data, "valid")], "ndcg@10")
        return torch.tensor([values.mean() if len(values) else 0.0])

    def finetuned(
        starts: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[tuple[Tensor, Params]]:
        """Validation NDCG@10 and parameters of every client's best epoch."""
        pairs = list(zip(starts, datasets, strict=True))
        best = [(valid(start, data), start) for start, data in pairs]
        config, now = replace(training.scaled(finetuning.step), local_epochs=1), list(starts)
        for epoch in range(1, finetuning.epochs + 1):
            jobs = [
                Job(
                    whole,
                    data,
                    stream_seed(training.seed, "finetune", data.client, epoch),
                    frozen=_all_of(whole, (shared | private) - moves),
                )
                for whole, data in zip(now, datasets, strict=True)
            ]
            now = [whole for whole, _ in train_clients(hard, config, jobs)]
            for place, (whole, data) in enumerate(zip(now, datasets, strict=True)):
                score = valid(whole, data)
                if score > best[place][0]:
                    best[place] = score, whole
        return best

    def finetunes(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[Params]:
        adapters = [select(state, private) for state in states]
        federated = finetuned([{**broadcast.params, **own} for own in adapters], datasets)
        if not finetuning.safety_rule:
            return [
                {**own, **_named(FEDERATED, whole)}
                for own, (_, whole) in zip(adapters, federated, strict=True)
            ]
        local = finetuned([best_alone(state) for state in states], datasets)
        return [
            {
                **own,
                **_named(FEDERATED, whole),
                **_named(LOCAL, other),
                SHIPS: (score > rival).float(),
            }
            for own, (score, whole), (rival, other) in zip(adapters, federated, local, strict=True)
        ]

    def federated_view(received: Params, state: Params) -> Params:
        return _under(state, FEDERATED) or {**received, **select(state, private)}

    def local_view(_received: Params, state: Params) -> Params:
        return _under(state, LOCAL) or best_alone(state)

    def personalize(received: Params, state: Params) -> Params:
        """Before the end what stage 1 has reached, after it what is shipped."""
        ships_local = SHIPS in state and not state[SHIPS].item()
        return (local_view if ships_local else federated_view)(received, state)

    return replace(
        fed_avg(task, training, step=step, weight_power=weight_power),
        init_client=init_client,
        client_updates=client_updates,
        personalize=personalize,
        finetunes=finetunes,
        views={FEDERATED: federated_view, LOCAL: local_view} if finetuning.safety_rule else {},
        outcome=shipped,
        states_fit_any_round=True,
    )


def shipped(state: Params) -> Sums:
    """Whether a finetuned client ships the federated result; nothing before the rule was asked."""
    return {SHIPPED: state[SHIPS].item()} if SHIPS in state else {}


def _all_of(params: Params, names: frozenset[str]) -> Masks:
    """Every coordinate of ``names``."""
    return {name: torch.ones_like(params[name], dtype=torch.bool) for name in names}


def _named(prefix: str, params: Params) -> Params:
    """Copies: a state is written to a file, which holds no tensor twice."""
    return {f"{prefix}/{name}": tensor.clone() for name, tensor in params.items()}


def _under(state: Params, prefix: str) -> Params:
    """Undoes :func:`_named`; empty where the state has none."""
    start = f"{prefix}/"
    return {n.removeprefix(start): tensor for n, tensor in state.items() if n.startswith(start)}
