"""Clients evaluated together rank as each alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfsr_core.assembly.registries import ENCODERS
from pfsr_core.data.client_dataset import SPLITS
from pfsr_core.evaluation.ranking import rank_among, ranks
from pfsr_core.federated import evaluation as personal_evaluation
from pfsr_core.federated.evaluation import (
    ClientModels,
    evaluate_clients,
    evaluate_models,
)
from pfsr_core.federated.simulation import run, state_of
from pfsr_core.settings.fields import Value
from tests.helpers.float64 import double
from tests.helpers.tiny import OWN_MODEL, tiny_world

RANKS = ("ranks_excluded", "ranks_kept", "ranks_sampled")


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(
    "changes",
    [
        {"federation__partition": "user"},
        {"federation__partition": "user", "model__items": "shared"},
        {"federation__partition": "user", "model__items": "dual"},
        {"federation__sizes": "1 3 2 8 9 1", "model__items": "semantic"},
        {"federation__sizes": "1 3 2 8 9 1"},
        {"federation__sizes": "1 3 2 8 9 1", "algorithm__name": "pfedrec"},
    ],
    ids=[
        "a user a client",
        "shared items",
        "dual items",
        "semantic items",
        "groups, one of them large",
        "an item scorer",
    ],
)
def test_together_equals_alone(changes: dict[str, Value], encoder: str) -> None:
    check(changes, encoder)


@pytest.mark.parametrize("items", ["private", "semantic"])
@pytest.mark.parametrize(
    ("encoder", "compressor"),
    [("sasrec", "tokens"), ("hstu", "tokens"), ("gru4rec", "state"), ("mamba", "state")],
)
def test_compressed_histories_are_read_alike(encoder: str, compressor: str, items: str) -> None:
    changes: dict[str, Value] = {"model__compressor": compressor, "model__recent": 4}
    changes |= {"model__personal_memory": True, "federation__sizes": "1 3 2 8 9 1"}
    check({**changes, "model__items": items}, encoder)


def check(changes: dict[str, Value], encoder: str) -> None:
    settings, federation, assembly = tiny_world(
        **{**changes, "model__encoder": encoder, "model__item_start": "co-occurrence"},
        data__sampled_99=True,
    )
    length, clients = settings.model.max_length, federation.clients
    server, states = run(assembly.algorithm, clients, rounds=1, seed=0, participation=0.8)
    exact = dict if settings.algorithm.name in OWN_MODEL else double  # the item scorer is float32
    server = replace(server, params=exact(server.params))
    states = {one.client: exact(state_of(assembly.algorithm, states, one)) for one in clients}
    found = evaluate_models(ClientModels(assembly, length, server.params, states), clients)
    check_against_scorers(settings, federation, assembly, (server, states), found)
    for way, view in assembly.algorithm.personalization.variants.items():
        seen = replace(assembly, algorithm=assembly.algorithm.with_model(view))
        others = [{split: one[split].ways[way] for split in SPLITS} for one in found]
        check_against_scorers(settings, federation, seen, (server, states), others)


def check_against_scorers(settings, federation, assembly, trained, found):
    length, clients, (server, states) = settings.model.max_length, federation.clients, trained
    scorer_of = ClientModels(assembly, length, server.params, states).scorer_of
    for split in SPLITS:
        for one, alone in zip(found, evaluate_clients(scorer_of, clients, split), strict=True):
            assert (one[split].client, one[split].users) == (alone.client, alone.users)
            for name in (*RANKS, "covered", "history_lengths"):
                assert np.array_equal(getattr(one[split], name), getattr(alone, name)), name


def test_small_clients_do_not_make_scores_of_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise AssertionError("a small client was evaluated alone")

    monkeypatch.setattr(personal_evaluation, "evaluate_client", refuse)
    settings, federation, assembly = tiny_world(federation__partition="user")
    shared = assembly.algorithm.server.init().params
    models = ClientModels(assembly, settings.model.max_length, shared, {})
    found = evaluate_models(models, federation.clients)
    assert len(found) == len(federation.clients)


@given(st.integers(1, 12), st.randoms(use_true_random=False))
def test_ranks_among_candidates_are_those_of_the_catalogue(items: int, random: object) -> None:
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    known = np.sort(rng.choice(items, rng.integers(1, items + 1), replace=False)) + 1
    history = np.unique(rng.integers(1, items + 1, rng.integers(1, items + 2)))
    target = int(rng.integers(1, items + 1))
    scores = np.round(rng.normal(size=len(known)), 1).astype(np.float32)  # ties happen
    whole = torch.full((1, items + 1), -torch.inf)
    whole[0, known] = torch.from_numpy(scores)
    excluded = torch.zeros(1, items + 1, dtype=torch.bool)
    expected_kept = int(ranks(whole, torch.tensor([target]), excluded))
    excluded[0, history] = True
    expected = int(ranks(whole, torch.tensor([target]), excluded)), expected_kept
    assert rank_among(scores, known, target, history, items) == expected


def test_a_diverged_model_is_an_error() -> None:
    scores = np.array([np.nan, 1.0], np.float32)
    with pytest.raises(ValueError, match="diverged"):
        rank_among(scores, np.array([1, 2]), 1, np.array([2]), 5)


@pytest.mark.parametrize(("name", "models"), [("fed-avg", 2), ("pfsr", 3), ("pfedrec", 3)])
def test_a_view_that_is_the_served_model_is_evaluated_once(
    name: str, models: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two views, FedAvg's with the private part is what it serves; PFSR's has no own encoder."""
    settings, federation, assembly = tiny_world(algorithm__name=name, model__items="dual")
    server, states = run(assembly.algorithm, federation.clients, rounds=2, seed=0)
    calls: list[int] = []
    original = personal_evaluation.evaluate_together

    def counting(*given: object) -> object:
        calls.append(1)
        return original(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(personal_evaluation, "evaluate_together", counting)
    length = settings.model.max_length
    client_models = ClientModels(assembly, length, server.params, states)
    found = evaluate_models(client_models, federation.clients)
    assert len(calls) == models
    for one in found:
        assert set(one["test"].ways) == set(assembly.algorithm.personalization.variants)
    if name == "fed-avg":
        for one in found:
            same = one["test"].ways["global+private"]
            assert np.array_equal(same.ranks_excluded, one["test"].ranks_excluded)
            assert not same.ways
