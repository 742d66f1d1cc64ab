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
        assembly: the model and the algorithm, whose ``personalize`` merges both parts.
        max_length: the longest history that a model reads.
        shared: the shared parameters.
        states: private states by client; a client that is not among them has its first one.
    """

    assembly: Assembly
    max_length: int
    shared: Params
    states: Mapping[str, Params]

    def merged_params(self, data: ClientDataset, personalize: Personalize | None = None) -> Params:
        """The shared and the private parameters of a client as one model."""
        algorithm = self.assembly.algorithm
        merge_parts = personalize or algorithm.personalize
        return merge_parts(self.shared, state_of(algorithm, self.states, data))

    def scorer_of(self, data: ClientDataset, personalize: Personalize | None = None) -> Scorer:
        """The scorer of a client's model, which ``personalize`` makes, else the algorithm's own."""
        params = self.merged_params(data, personalize)
        return make_scorer(self.assembly.task, params, data, self.max_length)


def evaluate_models(models: ClientModels, clients: Sequence[ClientDataset]) -> list[Evaluated]:
    """Both splits of every client with its personalised model, small clients together.

    As :func:`evaluate_clients` with :meth:`ClientModels.scorer_of`, and beside it with each of the
    algorithm's variants; one that is ``personalize`` itself is not evaluated again.
    """
    algorithm = models.assembly.algorithm
    evaluations: dict[str, Evaluated] = {}
    for portion in portions(algorithm, models.shared, clients):
        states = {data.client: state_of(algorithm, models.states, data) for data in portion}
        local = replace(models, states=states)
        main = _evaluate_portion(local, portion, algorithm.personalize)
        others = {
            name: main
            if variant is algorithm.personalize
            else _evaluate_portion(local, portion, variant)
            for name, variant in algorithm.views.items()
        }
        for position, data in enumerate(portion):
            variants = {name: evaluated[position] for name, evaluated in others.items()}
            evaluations[data.client] = _with_variants(main[position], variants)
    return [evaluations[data.client] for data in clients]


def evaluate_full(
    models: ClientModels, broadcast: Broadcast, clients: Sequence[ClientDataset]
) -> list[Evaluated]:
    """FULL: both splits of every client with the model that it serves after training once more.

    What is trained here is not kept.

    Args:
        models: the states that clients train from.
        broadcast: what the server sends after its last round.
        clients: whom to evaluate.
    """
    algorithm = models.assembly.algorithm
    evaluations: dict[str, Evaluated] = {}
    for portion in portions(algorithm, broadcast.params, clients):
        states = finetune_clients(algorithm, broadcast, models.states, portion)
        finetuned = replace(
            models,
            assembly=without_variants(models.assembly),
            shared=broadcast.params,
            states=states,
        )
        evaluated = evaluate_models(finetuned, portion)
        evaluations |= zip((data.client for data in portion), evaluated, strict=True)
    return [evaluations[data.client] for data in clients]


def without_variants(assembly: Assembly) -> Assembly:
    """The same, evaluated with the personalised model alone."""
    return replace(assembly, algorithm=replace(assembly.algorithm, views={}))


def shows_full(algorithm: FederatedAlgorithm, evaluate_clients: str) -> bool:
    """Whether a run ends with FULL, which costs a training of every client that is evaluated.

    Not where only those that are asked are evaluated: a population may be large then.

    Args:
        algorithm: the algorithm of the run.
        evaluate_clients: the setting ``run.evaluate-clients``, "all" or "asked".
    """
    return algorithm.has_full_view and evaluate_clients == "all"


def _evaluate_portion(
    models: ClientModels, clients: Sequence[ClientDataset], personalize: Personalize
) -> list[Evaluated]:
    """Every client with the model that ``personalize`` makes of its state."""
    small = [data for data in clients if len(data.users) <= SMALL]
    params = [models.merged_params(data, personalize) for data in small]
    together = evaluate_together(models.assembly.task, params, small, models.max_length)
    evaluations = {data.client: one for data, one in zip(small, together, strict=True)}
    for data in clients:
        if data.client not in evaluations:
            scorer = models.scorer_of(data, personalize)
            evaluations[data.client] = {
                split: evaluate_client(scorer, data, split) for split in SPLITS
            }
    return [evaluations[data.client] for data in clients]


def _with_variants(main: Evaluated, variants: Mapping[str, Evaluated]) -> Evaluated:
    if not variants:
        return main
    return {
        split: replace(one, variants={name: other[split] for name, other in variants.items()})
        for split, one in main.items()
    }


def evaluate_clients(
    scorer_of: ScorerOf, clients: Sequence[ClientDataset], split: HeldOut
) -> list[ClientEvaluation]:
    """Every client with its own scorer, in the order given."""
    return [evaluate_client(scorer_of(data), data, split) for data in clients]


def split_means(evaluations: Mapping[HeldOut, Iterable[ClientEvaluation]]) -> dict[str, float]:
    """Means over all users, named ``<split>/<candidates>/<metric>``, with ``<split>/covered``.

    Those over clients are ``<split>/clients/<metric>``; ``<split>/users`` and ``<split>/clients``
    are counts.
    """
    return {
        f"{split}/{key}": value
        for split, of_split in evaluations.items()
        for key, value in means(merge(*(one.client_sums() for one in of_split))).items()
    }
