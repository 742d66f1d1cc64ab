"""FeCoSR: what each stage moves, and that no market ships what it can beat alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np
import pytest
import torch

from pfsr_core.algorithms.fecosr import (
    FEDERATED,
    LOCAL,
    SHIPPED,
    FeCoSRSettings,
    Scored,
    Stages,
    fecosr,
)
from pfsr_core.assembly.assemble import local_training
from pfsr_core.assembly.compatibility import algorithm_names
from pfsr_core.assembly.data import FederatedDataset
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.evaluation.scoring import make_scorer
from pfsr_core.federated import simulation
from pfsr_core.federated.aggregation import merge_sums
from pfsr_core.federated.algorithm import FederatedAlgorithm
from pfsr_core.federated.evaluation import ClientModels, evaluate_models, split_means
from pfsr_core.federated.model import Assembly
from pfsr_core.items.adapter import BASIS
from pfsr_core.models.parameter_names import RESIDUAL
from pfsr_core.params import Params
from pfsr_core.settings.fields import SettingsError, Value
from pfsr_core.training.task import TaskLoss
from tests.helpers.tiny import tiny_settings, tiny_world

VALID = "valid/seen-filtered/ndcg@10"


def world(**changes: Value) -> tuple[FederatedDataset, Assembly]:
    chosen = {"algorithm__name": "fecosr", "train__semantic_share": 0.3, **changes}
    _, federation, assembly = tiny_world(**chosen)
    return federation, assembly


def after(
    rounds: int, **changes: Value
) -> tuple[FederatedDataset, Assembly, Params, simulation.States]:
    """A federation after some rounds: with its shared parameters and its clients' states."""
    federation, assembly = world(train__learning_rate=0.01, **changes)
    server, states = simulation.run(assembly.algorithm, federation.clients, rounds=rounds, seed=1)
    return federation, assembly, dict(server.params), states


def finetuned(
    algorithm: FederatedAlgorithm,
    shared: Params,
    states: simulation.States,
    federation: FederatedDataset,
) -> simulation.States:
    broadcast = replace(algorithm.server.init(), params=shared, round=2).broadcast()
    return simulation.finetune_clients(algorithm, broadcast, states, federation.clients)


def valid(assembly: Assembly, shared: Params, state: Params, data: ClientDataset) -> float:
    (found,) = evaluate_models(ClientModels(assembly, 10, shared, {data.client: state}), [data])
    return split_means({split: [one] for split, one in found.items()})[VALID]


def of_both(
    assembly: Assembly, shared: Params, state: Params, data: ClientDataset
) -> dict[str, float]:
    """What the federated and the local result reach on validation."""
    algorithm = assembly.algorithm
    ways = {
        way: algorithm.with_model(view) for way, view in algorithm.personalization.variants.items()
    }
    return {
        way: valid(replace(assembly, algorithm=one), shared, state, data)
        for way, one in ways.items()
    }


def test_an_untouched_adapter_changes_no_score() -> None:
    federation, assembly = world()
    _, _, semantic = tiny_world(model__items="semantic")
    data = federation.clients[0]
    shared, own = assembly.task.partition.init_shared(), assembly.task.partition.init_private(data)
    scores = make_scorer(assembly.task, {**shared, **own}, data, 10)([data.users[0].train])
    residual = {RESIDUAL: torch.zeros(len(data.touched) + 1, 8)}
    expected = make_scorer(semantic.task, {**shared, **residual}, data, 10)([data.users[0].train])
    torch.testing.assert_close(scores, expected)


def test_pretraining_moves_what_is_shared_and_no_adapter() -> None:
    federation, assembly, shared, states = after(2)
    start = assembly.task.partition.init_shared()
    assert all(not torch.equal(shared[name], start[name]) for name in start if "bias" not in name)
    for data in federation.clients:
        for name, tensor in assembly.task.partition.init_private(data).items():
            assert torch.equal(states[data.client][name], tensor)
            assert name == BASIS or not tensor.any()


def test_markets_weigh_their_interactions_to_a_power() -> None:
    federation, assembly = world(algorithm__weight_power=0.5)
    algorithm, data = assembly.algorithm, federation.clients[0]
    broadcast = algorithm.server.init().broadcast()
    update = algorithm.client_update(broadcast, algorithm.client.init(data), data)
    assert update.weight == data.num_interactions**0.5


def test_stage_2_starts_at_the_model_of_stage_1() -> None:
    federation, assembly, shared, states = after(1)
    settings, _, _ = tiny_world()
    none = fecosr(assembly.task, local_training(settings), FeCoSRSettings(finetune_epochs=0))
    found = finetuned(none, shared, states, federation)
    for data in federation.clients:
        before = assembly.algorithm.personalization.model(shared, states[data.client])
        same = none.personalization.variants[FEDERATED](shared, found[data.client])
        assert before.keys() == same.keys()
        assert all(torch.equal(before[name], same[name]) for name in before)


@pytest.fixture
def prefer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets validation prefer the "first" or the "last" model that it is shown."""

    def choose(which: str) -> None:
        scores = count(1.0, 1.0 if which == "last" else -1.0)
        monkeypatch.setattr(
            Stages, "scored", lambda self, whole, data: Scored(torch.tensor([next(scores)]), whole)
        )

    return choose


@pytest.mark.parametrize("mode", ["adapter", "all", "all+adapter"])
def test_finetuning_moves_what_its_mode_names(mode: str, prefer: Callable[[str], None]) -> None:
    prefer("last")
    federation, assembly, shared, states = after(1, algorithm__fecosr__finetune_mode=mode)
    found = finetuned(assembly.algorithm, shared, states, federation)
    moved: set[str] = set()
    for data in federation.clients:
        before = assembly.algorithm.personalization.model(shared, states[data.client])
        whole = assembly.algorithm.personalization.variants[FEDERATED](shared, found[data.client])
        moved |= {name for name in before if not torch.equal(whole[name], before[name])}
    adapter = {name for name in moved if name.startswith("adapter.")}
    assert bool(adapter) == ("adapter" in mode)
    assert bool(moved - adapter) == ("all" in mode)


def test_where_validation_prefers_the_start_nothing_moves(prefer: Callable[[str], None]) -> None:
    prefer("first")
    federation, assembly, shared, states = after(1)
    found = finetuned(assembly.algorithm, shared, states, federation)
    for data in federation.clients:
        before = assembly.algorithm.personalization.model(shared, states[data.client])
        whole = assembly.algorithm.personalization.variants[FEDERATED](shared, found[data.client])
        assert all(torch.equal(whole[name], before[name]) for name in before)


@pytest.mark.parametrize("rounds", [1, 4])
def test_no_market_ships_what_it_can_beat_alone(rounds: int) -> None:
    federation, assembly, shared, states = after(rounds)
    algorithm = assembly.algorithm
    found = finetuned(algorithm, shared, states, federation)
    both = partial(of_both, assembly, shared)
    shipped = 0
    for data in federation.clients:
        state = found[data.client]
        # as the rule has them: in float32, where the order of users in a mean makes no difference
        reached = {way: np.float32(score) for way, score in both(state, data).items()}
        federated = reached[FEDERATED] > reached[LOCAL]
        assert np.float32(valid(assembly, shared, state, data)) == max(reached.values())
        assert algorithm.personalization.outcome(state) == {SHIPPED: float(federated)}
        shipped += federated
        assert reached[FEDERATED] >= np.float32(valid(assembly, shared, states[data.client], data))
    total = merge_sums(algorithm.personalization.outcome(state) for state in found.values())
    assert total[SHIPPED] == shipped
    assert not algorithm.personalization.outcome(states[federation.clients[0].client])


def test_the_model_alone_knows_nothing_of_the_others() -> None:
    """It is what the same client reaches in a federation of its own, but for the hard targets."""
    federation, assembly, shared, states = after(2, train__engine="loop")
    data = federation.clients[0]
    found = finetuned(assembly.algorithm, shared, states, federation)[data.client]
    settings, _, _ = tiny_world(train__learning_rate=0.01, train__engine="loop")
    hard = replace(assembly.task, loss=TaskLoss())
    alone = fecosr(hard, local_training(settings), FeCoSRSettings(finetune_epochs=2))
    _, own = simulation.run(alone, [data], rounds=2, seed=1)
    broadcast = replace(alone.server.init(), round=2).broadcast()
    other = alone.finetune(broadcast, own[data.client], data)
    for name, tensor in alone.personalization.variants[LOCAL]({}, other).items():
        assert torch.equal(found[f"{LOCAL}/{name}"], tensor)


@pytest.mark.parametrize("left", [0, 1])
def test_a_market_that_cannot_train(left: int) -> None:
    """A user with one training item, or nobody: nothing moves. Where both are alike, its own."""
    federation, assembly, shared, states = after(1, federation__catalogues="own")
    data = federation.clients[0]
    lone = replace(data.users[0], train=data.users[0].train[:1])
    market = replace(data, users=(lone,)[:left])
    algorithm = assembly.algorithm
    fresh = algorithm.client.init(market)
    update = algorithm.client_update(algorithm.server.init().broadcast(), fresh, market)
    assert all(
        torch.equal(update.params[name], algorithm.server.init().params[name]) for name in shared
    )
    (ended,) = finetuned(algorithm, shared, {}, replace(federation, clients=(market,))).values()
    start = assembly.task.partition.init_shared()
    local = algorithm.personalization.variants[LOCAL](shared, ended)
    assert all(torch.equal(local[name], start[name]) for name in start)
    federated = algorithm.personalization.variants[FEDERATED](shared, ended)
    assert all(torch.equal(federated[name], shared[name]) for name in shared)
    reached = of_both(assembly, shared, ended, market) if left else {}
    beats = bool(left) and reached[FEDERATED] > reached[LOCAL]
    assert algorithm.personalization.outcome(ended) == {SHIPPED: float(beats)}


def test_without_the_rule_nobody_trains_alone() -> None:
    federation, assembly, shared, states = after(1, algorithm__fecosr__safety_rule=False)
    assert not assembly.algorithm.personalization.variants
    found = finetuned(assembly.algorithm, shared, states, federation)
    for state in [*states.values(), *found.values()]:
        assert not any(name.startswith(("alone", LOCAL)) for name in state)
        assert not assembly.algorithm.personalization.outcome(state)


def test_a_rule_without_a_second_stage_is_refused() -> None:
    settings = tiny_settings(algorithm__name="fecosr")
    algorithm = replace(settings.algorithm, finetune=False)
    with pytest.raises(SettingsError, match=r"compares finetuned models.*finetune = true, or"):
        algorithm_names(replace(settings, algorithm=algorithm))
    own = {**algorithm.own, "fecosr": FeCoSRSettings(safety_rule=False)}
    unseen = replace(algorithm, own=own)
    assert algorithm_names(replace(settings, algorithm=unseen)) == ["fecosr"]


def test_rows_of_users_that_no_stage_trains_are_refused() -> None:
    memory: dict[str, Value] = {
        "algorithm__name": "fecosr",
        "model__encoder": "sasrec",
        "model__compressor": "tokens",
        "model__personal_memory": True,
    }
    assert algorithm_names(tiny_settings(**memory)) == ["fecosr"]
    with pytest.raises(SettingsError, match="personal-memory with fecosr.*'all'"):
        algorithm_names(tiny_settings(**memory, algorithm__fecosr__finetune_mode="all"))


def test_the_model_alone_has_no_head_start() -> None:
    with pytest.raises(SettingsError, match="go on from there while the shared one begins anew"):
        algorithm_names(tiny_settings(algorithm__name="fecosr", run__warm_start="before"))
