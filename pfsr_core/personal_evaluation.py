"""Evaluation of many clients, each with the model or the baseline that it would recommend with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from pfsr_core.assembly import Assembly
from pfsr_core.data.client_dataset import ClientDataset, HeldOut
from pfsr_core.evaluation.client import ClientEvaluation, Scorer, evaluate_client
from pfsr_core.evaluation.ranking import means, merge
from pfsr_core.params import Params
from pfsr_core.scoring import make_scorer
from pfsr_core.simulation import state_of

ScorerOf = Callable[[ClientDataset], Scorer]
"""The scorer of one client; every baseline of ``BASELINES`` is one too."""


def personal_scorers(
    assembly: Assembly, max_length: int, shared: Params, states: Mapping[str, Params]
) -> ScorerOf:
    """Scorers of the personalised models; a client without a state has its first one."""
    task, algorithm = assembly.task, assembly.algorithm

    def scorer(data: ClientDataset) -> Scorer:
        whole = algorithm.personalize(shared, state_of(algorithm, states, data))
        return make_scorer(task, whole, data, max_length)

    return scorer


def evaluate_clients(
    scorer_of: ScorerOf, clients: Sequence[ClientDataset], split: HeldOut
) -> list[ClientEvaluation]:
    """Every client with its own scorer, in the order given."""
    return [evaluate_client(scorer_of(data), data, split) for data in clients]


def split_means(evaluations: Mapping[HeldOut, Iterable[ClientEvaluation]]) -> dict[str, float]:
    """Means over all users, named ``<split>/<view>/<metric>``, with ``<split>/covered``."""
    return {
        f"{split}/{key}": value
        for split, of_split in evaluations.items()
        for key, value in means(merge(*(one.sums() for one in of_split))).items()
        if key != "users"
    }
