"""Ditto (Li et al., ICML 2021): a personal model beside the global one, held near it.

    client  w_k <- w from training on CE                                  as FedAvg, replied
            v_k <- v_k from training on CE + lambda / 2 * || v_k - w ||^2   kept
    server  w <- weighted mean of the w_k

The pull is over the shared names, towards what was received; names that are private have no global
model. A client recommends with v_k, which begins as the first global model that it receives. The
global model's private names, such as an item table, are kept beside those of v_k, so that the
global model is FedAvg's to the bit. A client trains twice a round and sends what FedAvg sends.

Other than in the paper, whose personal objective is an update's own, v_k takes the batches and
dropout masks of w_k: both trainings differ in their start and in the pull alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pfsr_core.algorithms.fed_avg import fed_avg
from pfsr_core.algorithms.server_optimizers import PLAIN_MEAN, Averaging
from pfsr_core.algorithms.spec import AlgorithmSpec
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated.algorithm import (
    Broadcast,
    ClientUpdate,
    FederatedAlgorithm,
    Personalization,
    Personalize,
)
from pfsr_core.params import Params, of_prefix, select, with_prefix
from pfsr_core.settings.fields import setting
from pfsr_core.training.local import LocalTraining
from pfsr_core.training.task import Task

PERSONAL_MODEL = "personal"
"""Prefix of the personal model's tensors in a client's state."""


@dataclass(frozen=True)
class DittoSettings:
    """The personal models."""

    strength: float = setting(
        0.1, "weight lambda of the term that holds personal models to the global one", low=0.0
    )
    personal_epochs: int = setting(
        1, "passes over a client's data that train its personal model in a round", low=1
    )


def ditto(
    task: Task,
    training: LocalTraining,
    settings: DittoSettings,
    averaging: Averaging = PLAIN_MEAN,
) -> FederatedAlgorithm:
    """Federated averaging, and a personal model of every client with a proximal term."""
    average = fed_avg(task, training, averaging)
    own_training = training.with_settings(local_epochs=settings.personal_epochs)
    train_personal = fed_avg(
        task, own_training, proximal_strength=settings.strength
    ).client.finetunes

    def of_global(state: Params) -> Params:
        return select(state, task.partition.private)

    def of_personal(state: Params) -> Params:
        return of_prefix(state, PERSONAL_MODEL) or of_global(state)

    def finetunes(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[Params]:
        trained = train_personal(broadcast, list(map(of_personal, states)), datasets)
        return [
            {**of_global(state), **with_prefix(params, PERSONAL_MODEL)}
            for state, params in zip(states, trained, strict=True)
        ]

    def updates(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[ClientUpdate]:
        replies = average.client.updates(broadcast, list(map(of_global, states)), datasets)
        kept = finetunes(broadcast, states, datasets)
        return [
            replace(update, state={**state, **update.state})
            for update, state in zip(replies, kept, strict=True)
        ]

    def model(shared: Params, state: Params) -> Params:
        return {**shared, **of_personal(state)}

    def averaged(variant: Personalize) -> Personalize:
        return lambda shared, state: variant(shared, of_global(state))

    variants = {name: averaged(v) for name, v in average.personalization.variants.items()}
    return replace(
        average,
        client=replace(
            average.client, updates=updates, finetunes=finetunes, states_fit_any_round=False
        ),
        personalization=Personalization(model, variants),
    )


DITTO = AlgorithmSpec(ditto, DittoSettings)
