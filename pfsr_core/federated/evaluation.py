"""Evaluation of many clients, each with the model or the baseline that it would recommend with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from pfsr_core.assembly.settings import Settings
from pfsr_core.data.client_dataset import SPLITS, ClientDataset, HeldOut
from pfsr_core.evaluation.batched import SMALL, Evaluated, evaluate_together
from pfsr_core.evaluation.client import ClientEvaluation, Scorer, evaluate_client
from pfsr_core.evaluation.ranking import COUNTS, means, merge
from pfsr_core.evaluation.scoring import make_scorer
from pfsr_core.federated.algorithm import Broadcast, FederatedAlgorithm, Personalize
from pfsr_core.federated.model import Assembly
from pfsr_core.federated.simulation import finetune_clients, portions, state_of
from pfsr_core.params import Params

ScorerOf = Callable[[ClientDataset], Scorer]
"""The scorer of one client; every baseline of ``BASELINES`` is one too."""


def personal_scorers(
    assembly: Assembly, max_length: int, shared: Params, states: Mapping[str, Params]
) -> ScorerOf:
    """Scorers of the personalised models; a client without a state has its first one."""

    personalize = assembly.algorithm.personalization.model
    return _scorers(assembly, max_length, personalize, shared, states)


def _scorers(
    assembly: Assembly,
    max_length: int,
    personalize: Personalize,
    shared: Params,
    states: Mapping[str, Params],
) -> ScorerOf:
    def scorer(data: ClientDataset) -> Scorer:
        whole = personalize(shared, state_of(assembly.algorithm, states, data))
        return make_scorer(assembly.task, whole, data, max_length)

    return scorer


def evaluate_models(
    assembly: Assembly,
    max_length: int,
    shared: Params,
    states: Mapping[str, Params],
    clients: Sequence[ClientDataset],
) -> list[Evaluated]:
    """Both splits of every client with its personalised model, small clients together.

    As :func:`evaluate_clients` with :func:`personal_scorers`, and beside it with each of the
    algorithm's variants; one that is its model itself is not evaluated again.
    """
    algorithm = assembly.algorithm
    personalization = algorithm.personalization
    found: dict[str, Evaluated] = {}
    for portion in portions(algorithm, shared, clients):
        own = {data.client: state_of(algorithm, states, data) for data in portion}
        evaluate = partial(_evaluate_portion, assembly, max_length, shared, own, portion)
        main = evaluate(personalization.model)
        others = {
            way: main if view is personalization.model else evaluate(view)
            for way, view in personalization.variants.items()
        }
        for place, data in enumerate(portion):
            ways = {way: evaluated[place] for way, evaluated in others.items()}
            found[data.client] = _with_ways(main[place], ways)
    return [found[data.client] for data in clients]


def without_views(assembly: Assembly) -> Assembly:
    """The same, evaluated with the personalised model alone."""
    algorithm = assembly.algorithm
    return replace(assembly, algorithm=algorithm.with_model(algorithm.personalization.model))


def shows_full(algorithm: FederatedAlgorithm, settings: Settings) -> bool:
    """Whether a run ends with FULL, which costs a training of every client that is evaluated.

    Not where only those that are asked are evaluated: a population may be large then.
    """
    return algorithm.has_full_variant and settings.run.evaluate_clients == "all"


def evaluate_full(
    assembly: Assembly,
    max_length: int,
    broadcast: Broadcast,
    states: Mapping[str, Params],
    clients: Sequence[ClientDataset],
) -> list[Evaluated]:
    """FULL: both splits of every client with the model that it serves after training once more.

    ``broadcast``: what the server sends after its last round. What is trained here is forgotten.
    """
    algorithm, measured = assembly.algorithm, without_views(assembly)
    found: dict[str, Evaluated] = {}
    for portion in portions(algorithm, broadcast.params, clients):
        after = finetune_clients(algorithm, broadcast, states, portion)
        evaluated = evaluate_models(measured, max_length, broadcast.params, after, portion)
        found |= zip((data.client for data in portion), evaluated, strict=True)
    return [found[data.client] for data in clients]


def _evaluate_portion(
    assembly: Assembly,
    max_length: int,
    shared: Params,
    states: Mapping[str, Params],
    clients: Sequence[ClientDataset],
    personalize: Personalize,
) -> list[Evaluated]:
    """Every client with the model that ``personalize`` makes of its state."""
    small = [data for data in clients if len(data.users) <= SMALL]
    models = [personalize(shared, states[data.client]) for data in small]
    together = evaluate_together(assembly.task, models, small, max_length)
    found = {data.client: one for data, one in zip(small, together, strict=True)}
    scorer_of = _scorers(assembly, max_length, personalize, shared, states)
    for data in clients:
        if data.client not in found:
            scorer = scorer_of(data)
            found[data.client] = {split: evaluate_client(scorer, data, split) for split in SPLITS}
    return [found[data.client] for data in clients]


def _with_ways(main: Evaluated, ways: Mapping[str, Evaluated]) -> Evaluated:
    if not ways:
        return main
    return {
        split: replace(one, ways={way: other[split] for way, other in ways.items()})
        for split, one in main.items()
    }


def evaluate_clients(
    scorer_of: ScorerOf, clients: Sequence[ClientDataset], split: HeldOut
) -> list[ClientEvaluation]:
    """Every client with its own scorer, in the order given."""
    return [evaluate_client(scorer_of(data), data, split) for data in clients]


def split_means(evaluations: Mapping[HeldOut, Iterable[ClientEvaluation]]) -> dict[str, float]:
    """Means over all users, named ``<split>/<view>/<metric>``, with ``<split>/covered``.

    Those over clients are ``<split>/clients/<metric>``.
    """
    return {
        f"{split}/{key}": value
        for split, of_split in evaluations.items()
        for key, value in means(merge(*(one.client_sums() for one in of_split))).items()
        if key not in COUNTS
    }
