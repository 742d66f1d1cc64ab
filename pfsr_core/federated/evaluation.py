"""Evaluation of many clients, each with the model or the baseline that it would recommend with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pfsr_core.data.client_dataset import SPLITS, ClientDataset, HeldOut
from pfsr_core.evaluation.batched import SMALL, Evaluated, evaluate_together
from pfsr_core.evaluation.client import ClientEvaluation, Scorer, evaluate_client
from pfsr_core.evaluation.ranking import means, merge
from pfsr_core.evaluation.scoring import make_scorer
from pfsr_core.federated.algorithm import Broadcast, FederatedAlgorithm, Personalize
from pfsr_core.federated.model import Assembly
from pfsr_core.federated.simulation import finetune_clients, portions, state_of
from pfsr_core.params import Params

ScorerOf = Callable[[ClientDataset], Scorer]
"""The scorer of one client; every baseline of ``BASELINES`` is one too."""


@dataclass(frozen=True)
class ClientModels:
    """The models that clients recommend with: what they share and what each keeps private.

    Attributes:
        assembly: the model and the algorithm, whose ``personalization.model`` merges both parts.
        max_length: the longest history that a model reads.
        shared: the shared parameters.
        states: private states by client; a client that is not among them has its first one.
    """

    assembly: Assembly
    max_length: int
    shared: Params
    states: Mapping[str, Params]

    def merged_params(
        self, client_data: ClientDataset, personalize: Personalize | None = None
    ) -> Params:
        """The shared and the private parameters of a client as one model."""
        algorithm = self.assembly.algorithm
        merge_parts = personalize or algorithm.personalization.model
        return merge_parts(self.shared, state_of(algorithm, self.states, client_data))

    def scorer_of(
        self, client_data: ClientDataset, personalize: Personalize | None = None
    ) -> Scorer:
        """The scorer of a client's model, which ``personalize`` makes, else the algorithm's own."""
        params = self.merged_params(client_data, personalize)
        return make_scorer(self.assembly.task, params, client_data, self.max_length)


def evaluate_models(
    models: ClientModels, client_datasets: Sequence[ClientDataset]
) -> list[Evaluated]:
    """Both splits of every client with its personalised model, small clients together.

    As :func:`evaluate_clients` with :meth:`ClientModels.scorer_of`, and beside it with each of the
    algorithm's variants; one that is ``personalization.model`` itself is not evaluated again.
    """
    algorithm = models.assembly.algorithm
    evaluations: dict[str, Evaluated] = {}
    for portion in portions(algorithm, models.shared, client_datasets):
        portion_states = {
            client_data.client: state_of(algorithm, models.states, client_data)
            for client_data in portion
        }
        portion_models = replace(models, states=portion_states)
        main_evaluations = _evaluate_portion(
            portion_models, portion, algorithm.personalization.model
        )
        variant_evaluations = {
            variant_name: main_evaluations
            if variant is algorithm.personalization.model
            else _evaluate_portion(portion_models, portion, variant)
            for variant_name, variant in algorithm.personalization.variants.items()
        }
        for position, client_data in enumerate(portion):
            variants = {
                variant_name: evaluated[position]
                for variant_name, evaluated in variant_evaluations.items()
            }
            evaluations[client_data.client] = _with_variants(main_evaluations[position], variants)
    return [evaluations[client_data.client] for client_data in client_datasets]


def evaluate_full(
    models: ClientModels, broadcast: Broadcast, client_datasets: Sequence[ClientDataset]
) -> list[Evaluated]:
    """FULL: both splits of every client with the model that it serves after training once more.

    What is trained here is not kept.

    Args:
        models: the states that clients train from.
        broadcast: what the server sends after its last round.
        client_datasets: whom to evaluate.
    """
    algorithm = models.assembly.algorithm
    evaluations: dict[str, Evaluated] = {}
    for portion in portions(algorithm, broadcast.params, client_datasets):
        finetuned_states = finetune_clients(algorithm, broadcast, models.states, portion)
        finetuned_models = replace(
            models,
            assembly=without_variants(models.assembly),
            shared=broadcast.params,
            states=finetuned_states,
        )
        evaluated = evaluate_models(finetuned_models, portion)
        evaluations |= zip((client_data.client for client_data in portion), evaluated, strict=True)
    return [evaluations[client_data.client] for client_data in client_datasets]


def without_variants(assembly: Assembly) -> Assembly:
    """The same, evaluated with the personalised model alone."""
    model = assembly.algorithm.personalization.model
    return replace(assembly, algorithm=assembly.algorithm.with_model(model))


def shows_full(algorithm: FederatedAlgorithm, evaluate_clients: str) -> bool:
    """Whether a run ends with FULL, which costs a training of every client that is evaluated.

    Not where only those that are asked are evaluated: a population may be large then.

    Args:
        algorithm: the algorithm of the run.
        evaluate_clients: the setting ``run.evaluate-clients``, "all" or "asked".
    """
    return algorithm.has_full_variant and evaluate_clients == "all"


def _evaluate_portion(
    models: ClientModels, client_datasets: Sequence[ClientDataset], personalize: Personalize
) -> list[Evaluated]:
    """Every client with the model that ``personalize`` makes of its state."""
    small_clients = [
        client_data for client_data in client_datasets if len(client_data.users) <= SMALL
    ]
    client_params = [
        models.merged_params(client_data, personalize) for client_data in small_clients
    ]
    batch_evaluations = evaluate_together(
        models.assembly.task, client_params, small_clients, models.max_length
    )
    evaluations = {
        client_data.client: client_evaluation
        for client_data, client_evaluation in zip(small_clients, batch_evaluations, strict=True)
    }
    for client_data in client_datasets:
        if client_data.client not in evaluations:
            scorer = models.scorer_of(client_data, personalize)
            evaluations[client_data.client] = {
                split: evaluate_client(scorer, client_data, split) for split in SPLITS
            }
    return [evaluations[client_data.client] for client_data in client_datasets]


def _with_variants(main_evaluation: Evaluated, variants: Mapping[str, Evaluated]) -> Evaluated:
    if not variants:
        return main_evaluation
    return {
        split: replace(
            split_evaluation,
            variants={
                variant_name: variant_evaluation[split]
                for variant_name, variant_evaluation in variants.items()
            },
        )
        for split, split_evaluation in main_evaluation.items()
    }


def evaluate_clients(
    scorer_of: ScorerOf, client_datasets: Sequence[ClientDataset], split: HeldOut
) -> list[ClientEvaluation]:
    """Every client with its own scorer, in the order given."""
    return [
        evaluate_client(scorer_of(client_data), client_data, split)
        for client_data in client_datasets
    ]


def split_means(evaluations: Mapping[HeldOut, Iterable[ClientEvaluation]]) -> dict[str, float]:
    """Means over all users, named ``<split>/<candidates>/<metric>``, with ``<split>/covered``.

    Those over clients are ``<split>/clients/<metric>``; ``<split>/users`` and ``<split>/clients``
    are counts.
    """
    return {
        f"{split}/{metric_key}": metric_value
        for split, split_evaluations in evaluations.items()
        for metric_key, metric_value in means(
            merge(*(client_evaluation.client_sums() for client_evaluation in split_evaluations))
        ).items()
    }
