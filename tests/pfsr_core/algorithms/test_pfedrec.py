"""PFedRec: its steps by hand, the batch against the loop, what stays, and what a reply says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import exp

import numpy as np
import pytest
import torch

from pfsr_core.assembly.assemble import assemble, local_training
from pfsr_core.assembly.data import load_federation
from pfsr_core.data.client_dataset import ClientDataset, UserHistory
from pfsr_core.federated import simulation
from pfsr_core.federated.algorithm import (
    GLOBAL,
    WITH_PRIVATE,
    Broadcast,
    ClientUpdate,
    FederatedAlgorithm,
)
from pfsr_core.models.item_scorer import BIAS, CODES, ROWS, WEIGHT
from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.params import Params
from pfsr_core.serving.recommend import MODEL, recommend
from pfsr_core.settings.fields import Value
from pfsr_core.training import batched_item_scorer as batched_scorer
from pfsr_core.training.batched_item_scorer import train_scorers
from pfsr_core.training.item_scorer import TrainingPairs, train_scorer
from pfsr_core.training.item_scorer import draw_training_pairs as draw_pairs
from pfsr_core.training.local import LocalTraining
from tests.helpers.float64 import double
from tests.helpers.tiny import tiny_settings, tiny_world
from tests.pfsr_core.algorithms.no_learning import hit_rate
from tests.pfsr_core.algorithms.sign_attack import attack, guess, precision_recall
from tests.pfsr_core.serving.test_recommend import serve

ONE_USER: dict[str, Value] = {
    "algorithm__name": "pfedrec",
    "federation__partition": "user",
    "train__batch_size": 16,
}


draw_training_pairs = partial(draw_pairs, negatives_per_positive=4, by_row=True)


def training_of(**changes: Value) -> LocalTraining:
    return local_training(tiny_settings(**{**ONE_USER, **changes}))


def reader(*items: int, num_items: int = 600, name: str = "reader") -> ClientDataset:
    user = UserHistory(name, np.array(items, np.int64), num_items - 1, num_items)
    return ClientDataset(name, (user,), tuple(map(str, range(1, num_items + 1))))


def updates(
    algorithm: FederatedAlgorithm, *clients: ClientDataset, of: Callable[[Params], Params] = double
) -> list[ClientUpdate]:
    """Of a first round; in float64, or with the parameters that ``of`` makes of float32."""
    states = [of(algorithm.client.init(data)) for data in clients]
    broadcast = Broadcast(of(algorithm.server.init().params), 1, {})
    return algorithm.client.updates(broadcast, states, clients)


def two_steps() -> tuple[Params, TrainingPairs]:
    """Items 1 (twice, liked) and 3 (not) in one batch of three, D = 1."""
    params = {ITEMS: torch.tensor([[0.0], [2.0], [7.0], [1.0]])}
    params |= {WEIGHT: torch.tensor([[0.5]]), BIAS: torch.tensor([0.1])}
    pairs = TrainingPairs(
        codes=np.array([1, 3]),
        rows=np.array([[0, 0, 1]]),
        labels=np.array([[1, 1, 0]], np.float32),
        shares=np.full((1, 3), 1 / 3, np.float32),
        item_shares=np.array([[0.5, 0.5, 1.0]], np.float32),
    )
    return params, pairs


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_a_batch_by_hand(engine: str) -> None:
    params, pairs = two_steps()
    config = training_of().with_settings(learning_rate=0.3, item_learning_rate=2.0)
    if engine == "loop":
        whole, losses = train_scorer(config, params, pairs, 1)
        rows = whole[ITEMS][[1, 3]]
        assert float(whole[ITEMS][2]) == 7.0
    else:
        ((whole, rows, losses),) = train_scorers(config, params[ITEMS], [params], [pairs], 1)

    def sigmoid(x: float) -> float:
        return 1 / (1 + exp(-x))

    liked, other = sigmoid(0.5 * 2 + 0.1) - 1, sigmoid(0.5 * 1 + 0.1)
    weight = 0.5 - 0.3 * (2 * liked * 2 + other * 1) / 3
    bias = 0.1 - 0.3 * (2 * liked + other) / 3
    assert float(whole[WEIGHT]) == pytest.approx(weight, abs=1e-6)
    assert float(whole[BIAS]) == pytest.approx(bias, abs=1e-6)
    # The rows move with the new score function, each by the mean over its own samples.
    expected = [
        2 - 2.0 * (sigmoid(weight * 2 + bias) - 1) * weight,
        1 - 2.0 * sigmoid(weight * 1 + bias) * weight,
    ]
    assert rows[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert losses.count == 3
    first = -2 * np.log(1 + liked) - np.log(1 - other)
    assert losses.total == pytest.approx(first, abs=1e-6)


@pytest.mark.parametrize("item_step", ["row", "batch"])
def test_in_float32_a_batch_equals_the_loop(item_step: str) -> None:
    changes: dict[str, Value] = {**ONE_USER, "algorithm__pfedrec__item_step": item_step}
    found: list[list[ClientUpdate]] = []
    for engine in ("loop", "batched"):
        _, federation, assembly = tiny_world(**changes, train__engine=engine)
        found.append(updates(assembly.algorithm, *federation.clients, of=dict))
    for alone, together in zip(*found, strict=True):
        torch.testing.assert_close(together.params[ITEMS], alone.params[ITEMS], rtol=0, atol=1e-5)
        assert together.state.keys() == alone.state.keys()
        for name, tensor in alone.state.items():
            torch.testing.assert_close(together.state[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_clients_of_one_item_and_of_none_train_beside_others(engine: str) -> None:
    """Whoever has nothing sends back what it received, and touches nobody else's training."""
    _, federation, assembly = tiny_world(**ONE_USER, train__engine=engine)
    algorithm, usual = assembly.algorithm, federation.clients[:2]
    one, none = (
        replace(data, users=(replace(data.users[0], train=data.users[0].train[:left]),))
        for data, left in zip(federation.clients[2:4], (1, 0), strict=True)
    )
    expected = updates(algorithm, *usual)
    first, little, nothing, second = updates(algorithm, usual[0], one, none, usual[1])
    for found, alone in zip((first, second), expected, strict=True):
        torch.testing.assert_close(found.params[ITEMS], alone.params[ITEMS], rtol=0, atol=1e-12)
    assert little.metrics["train-targets"] == 5 and 1 < len(little.state[CODES]) <= 5
    assert torch.equal(nothing.params[ITEMS], algorithm.server.init().params[ITEMS])
    assert len(nothing.state[CODES]) == nothing.norm == nothing.metrics["train-targets"] == 0
    assert torch.equal(
        algorithm.personalization.model(nothing.params, nothing.state)[ITEMS], nothing.params[ITEMS]
    )


def test_groups_are_bounded_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, federation, assembly = tiny_world(**ONE_USER)
    whole = updates(assembly.algorithm, *federation.clients)
    monkeypatch.setattr(batched_scorer, "SAMPLES_PER_STEP", 50)
    client_pairs = [draw_training_pairs(training_of(), data, 1) for data in federation.clients]
    groups = batched_scorer._groups(client_pairs)
    assert len(groups) > 3
    assert sorted(i for group in groups for i in group) == list(range(len(client_pairs)))
    for group in groups:
        widest = max(client_pairs[i].rows.shape[1] for i in group)
        assert len(group) == 1 or len(group) * widest <= 50
        steps = [len(client_pairs[i].rows) for i in group]
        assert steps == sorted(steps, reverse=True)
    for one, other in zip(whole, updates(assembly.algorithm, *federation.clients), strict=True):
        torch.testing.assert_close(one.params, other.params, rtol=0, atol=1e-12)


def test_rows_that_a_client_did_not_touch_are_not_computed() -> None:
    _, federation, assembly = tiny_world(**ONE_USER)
    algorithm, data = assembly.algorithm, federation.clients[0]
    server, state = algorithm.server.init(), algorithm.client.init(data)
    expected = algorithm.client_update(server.broadcast(), state, data)
    touched = expected.state[CODES].long()
    poisoned = torch.full_like(server.params[ITEMS], torch.nan)
    poisoned[touched] = server.params[ITEMS][touched]
    found = algorithm.client_update(Broadcast({ITEMS: poisoned}, 1), state, data)
    assert torch.equal(found.params[ITEMS][touched], expected.params[ITEMS][touched])
    assert torch.equal(found.state[WEIGHT], expected.state[WEIGHT])
    rest = torch.ones(len(poisoned), dtype=torch.bool).index_fill(0, touched, False)
    assert torch.equal(expected.params[ITEMS][rest], server.params[ITEMS][rest])


def test_negatives_are_drawn_anew_every_round_and_say_what_the_protocol_says() -> None:
    data = reader(1, 2, 3, num_items=8)
    training = training_of()
    drawn = {}
    for protocol in ("strict", "paper-pfedrec"):
        client_pairs = [
            draw_training_pairs(training, replace(data, protocol=protocol), r) for r in range(1, 30)
        ]
        zeros = [one.codes[one.rows[(one.shares > 0) & (one.labels == 0)]] for one in client_pairs]
        assert {len(part) for part in zeros} == {12}
        assert len({tuple(np.sort(part)) for part in zeros}) > 5
        drawn[protocol] = set(np.concatenate(zeros).tolist())
    assert drawn == {"strict": {4, 5, 6, 7, 8}, "paper-pfedrec": {4, 5, 6}}


def test_every_sample_counts_once_an_epoch() -> None:
    training = training_of(train__local_epochs=3, train__batch_size=4)
    pairs = draw_training_pairs(training, reader(5, 9, 2), 1)
    assert pairs.rows.shape == (3 * 4, 4)  # 15 samples, in batches of 4, 4, 4, 3
    assert (pairs.shares > 0).sum() == 3 * 15
    assert pairs.shares.sum(1) == pytest.approx(np.ones(12))
    for rows, shares in zip(pairs.rows, pairs.item_shares, strict=True):
        for row in set(rows[shares > 0]):
            assert shares[rows == row].sum() == pytest.approx(1.0)


def test_what_is_kept_of_a_table_are_the_rows_last_touched() -> None:
    _, federation, assembly = tiny_world(**ONE_USER)
    algorithm, data = assembly.algorithm, federation.clients[0]
    first = algorithm.client_update(
        algorithm.server.init().broadcast(), algorithm.client.init(data), data
    )
    newer = {ITEMS: algorithm.server.init().params[ITEMS] + 1.0}
    table = algorithm.personalization.model(newer, first.state)[ITEMS]
    touched = first.state[CODES].long()
    assert set(touched.tolist()) >= set(data.touched.tolist())
    assert torch.equal(table[touched], first.state[ROWS])
    rest = torch.ones(len(table), dtype=torch.bool).index_fill(0, touched, False)
    assert bool(rest.any()) and torch.equal(table[rest], newer[ITEMS][rest])
    # After absence it trains from what it receives, with its own score function.
    again = algorithm.client_update(Broadcast(newer, 7), first.state, data)
    forgotten = {
        **algorithm.client.init(data),
        WEIGHT: first.state[WEIGHT],
        BIAS: first.state[BIAS],
    }
    same = algorithm.client_update(Broadcast(newer, 7), forgotten, data)
    assert torch.equal(again.params[ITEMS], same.params[ITEMS])


def test_three_views() -> None:
    _, federation, assembly = tiny_world(**ONE_USER)
    algorithm, data = assembly.algorithm, federation.clients[0]
    shared, fresh = algorithm.server.init().params, algorithm.client.init(data)
    state = algorithm.client_update(algorithm.server.init().broadcast(), fresh, data).state
    seen = {name: view(shared, state) for name, view in algorithm.personalization.variants.items()}
    assert set(seen) == {GLOBAL, WITH_PRIVATE}
    assert all(torch.equal(one[ITEMS], shared[ITEMS]) for one in seen.values())
    assert torch.equal(seen[GLOBAL][WEIGHT], fresh[WEIGHT])
    assert torch.equal(seen[WITH_PRIVATE][WEIGHT], state[WEIGHT])
    full = algorithm.personalization.model(shared, state)
    assert torch.equal(full[WEIGHT], state[WEIGHT]) and not torch.equal(full[ITEMS], shared[ITEMS])


def test_only_the_item_table_leaves() -> None:
    _, _, assembly = tiny_world(**ONE_USER)
    assert assembly.algorithm.client.reply_shapes == {ITEMS: assembly.shapes[ITEMS]}
    assert set(assembly.shapes) == {ITEMS, WEIGHT, BIAS}


def test_size_pattern_and_weight_of_a_reply_are_those_of_every_client() -> None:
    """5 and 500 interactions look alike, but for what :func:`guess` finds by comparison."""
    ids = [str(code) for code in range(1, 601)]
    algorithm = assemble(tiny_settings(**ONE_USER), ids).algorithm
    little, much = updates(algorithm, reader(*range(1, 6)), reader(*range(1, 501)))
    for one in (little, much):
        assert {name: tensor.shape for name, tensor in one.params.items()} == {ITEMS: (601, 8)}
        assert one.weight == 1.0
    nonzero = [one.params[ITEMS] != 0 for one in (little, much)]
    assert torch.equal(*nonzero) and bool(nonzero[0][1:].all())
    sent = algorithm.server.init().params[ITEMS]
    moved = [int((one.params[ITEMS] != sent).any(1).sum()) for one in (little, much)]
    assert moved[0] <= 25 < 500 <= moved[1]  # not hidden, and not claimed to be


@pytest.mark.parametrize("item_step", ["row", "batch"])
def test_one_reply_gives_the_history_away_and_a_sum_gives_less(item_step: str) -> None:
    world: dict[str, Value] = {"data__path": "users=60,items=300,seed=3,mean_length=20"}
    _, federation, assembly = tiny_world(
        **{
            **ONE_USER,
            **world,
            "algorithm__pfedrec__item_step": item_step,
            "model__embedding_dim": 32,
        }
    )
    trained = simulation.run(assembly.algorithm, federation.clients, rounds=2, seed=0)
    alone = np.mean(list(attack(assembly, federation, trained, 1)), axis=0)
    summed = np.mean(list(attack(assembly, federation, trained, 20)), axis=0)
    assert alone.min() > 0.95
    assert summed[0] < 0.35


def test_the_attack_by_hand() -> None:
    sent = torch.zeros(6, 2)
    reply = sent.clone()
    reply[[1, 2, 4]] = -torch.tensor([0.5, 1.0])
    reply[3] = torch.tensor([1.0, 2.0])
    assert guess(sent, reply).tolist() == [3]
    assert guess(sent, sent).tolist() == []
    assert precision_recall(np.array([3, 4]), np.array([3, 1, 2])) == (0.5, 1 / 3)


def test_who_learns_nothing_wins_under_the_protocol_that_leaks_and_only_there() -> None:
    found = {}
    for protocol in ("paper-pfedrec", "strict"):
        settings = tiny_settings(
            **ONE_USER,
            data__protocol=protocol,
            data__path="users=100,items=300,seed=1,mean_length=40",
        )
        clients = load_federation(settings).clients
        found[protocol] = hit_rate(clients, training_of(), rounds=50)
    assert found["paper-pfedrec"] > 0.9
    assert found["strict"] == pytest.approx(0.1, abs=0.09)  # three standard errors


def test_a_served_model_recommends() -> None:
    served = serve(**{**ONE_USER, "federation__rounds": 2})
    client, part = next(iter(served.clients.items()))
    user, codes = next(iter(part.histories.items()))
    answer = recommend(served, user, k=5)
    assert answer.client == client and answer.source == MODEL
    history = {served.items.ids[code - 1] for code in codes}
    assert len(answer.recommendations) == 5
    assert not history & {one.item for one in answer.recommendations}
    table, weight = part.state[ROWS], part.state[WEIGHT][0]
    own = dict(zip(part.state[CODES].tolist(), (table @ weight).tolist(), strict=True))
    common = (served.shared[ITEMS] @ weight).tolist()
    for one in answer.recommendations:
        code = served.items.ids.index(one.item) + 1
        assert one.score == pytest.approx(own.get(code, common[code]), rel=1e-5)
