"""The strategy's steps, each by itself, over the loopback grid."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ConfigRecord, Error, Message
from flwr.serverapp.strategy import Strategy

from pfsr_core.assembly.settings import flat_settings
from pfsr_core.federated.protocol import CONFIG, SHARED
from pfsr_core.params import pack
from server_app.checkpoints import Progress, load_checkpoint
from server_app.membership import gather_nodes
from server_app.messaging import send_and_receive
from server_app.run import server_model
from server_app.run_log import open_run
from server_app.strategy import (
    PersonalizedStrategy,
    RoundsAbandonedError,
    Training,
    select_best_round,
    to_arrays,
)
from tests.integration.helpers import assert_same_server, lines, plain_loop, settings_in
from tests.integration.loopback import LoopbackGrid, partitions

NODES = 2
NO_CONFIG = ConfigRecord()


def world(tmp_path, **changes):
    """(grid, strategy) of a run whose nodes have registered."""
    settings = settings_in(tmp_path, algorithm__name="fed-avg", **changes)
    grid = LoopbackGrid(flat_settings(settings), partitions(NODES, tmp_path / "state"))
    log = open_run(settings)
    registration = {"run": log.run_id, "warm-start": ""}
    roster = gather_nodes(grid, registration, start_timeout=20)
    algorithm = server_model(settings, roster).algorithm
    training = Training(log, settings, algorithm, "fingerprint", registration)
    return grid, PersonalizedStrategy(training, roster, Progress(algorithm.server.init()))


def begin(grid, strategy):
    """(shared parameters as sent, messages of round 1, replies to them)."""
    arrays = to_arrays(strategy.progress.server)
    messages = list(strategy.configure_train(1, arrays, NO_CONFIG, grid))
    return arrays, messages, send_and_receive(grid, messages, 20)


def test_it_is_a_strategy_of_flower(tmp_path):
    _grid, strategy = world(tmp_path)
    assert isinstance(strategy, Strategy)
    strategy.summary()


def test_instructions_ask_each_node_for_its_own_clients(tmp_path):
    grid, strategy = world(tmp_path)
    arrays = to_arrays(strategy.progress.server)
    config = ConfigRecord({"extra": 1})
    messages = list(strategy.configure_train(1, arrays, config, grid))
    asked = [list(m.content.config_records[CONFIG]["clients"]) for m in messages]
    assert asked == [list(member.clients) for member in strategy.roster.members]
    assert sorted(sum(asked, [])) == sorted(strategy.choose_clients(1))
    for message in messages:
        assert message.content.config_records[CONFIG]["extra"] == 1
        assert message.content.array_records[SHARED] is arrays
        assert message.metadata.group_id == "1"


def test_a_round_by_its_steps_is_that_of_the_plain_loop(tmp_path):
    grid, strategy = world(tmp_path, federation__rounds=1)
    expected, _states = plain_loop(strategy.training.settings, nodes=NODES)
    _arrays, _messages, replies = begin(grid, strategy)
    arrays, metrics = strategy.aggregate_train(1, replies)
    assert_same_server(strategy.progress.server, expected)
    assert (arrays[SHARED].numpy() == pack(expected.params)).all()
    assert metrics["train-targets"] > 0
    assert strategy.progress.last_rounds == dict.fromkeys(strategy.roster.clients, 1)


def test_the_order_of_the_replies_changes_nothing(tmp_path):
    results = []
    for name, step in (("a", 1), ("b", -1)):
        grid, strategy = world(tmp_path / name)
        _arrays, _messages, replies = begin(grid, strategy)
        strategy.aggregate_train(1, replies[::step])
        results.append(pack(strategy.progress.server.params))
    assert (results[0] == results[1]).all()


@pytest.mark.parametrize("lost", ["silence", "error"])
def test_too_few_replies_change_nothing(tmp_path, lost):
    grid, strategy = world(tmp_path, federation__min_clients=4)
    before = strategy.progress
    _arrays, messages, replies = begin(grid, strategy)
    other = Message(Error(code=1, reason="out of memory"), reply_to=messages[0])
    answered = replies[1:] if lost == "silence" else [other, *replies[1:]]
    assert strategy.aggregate_train(1, answered) == (None, None)
    assert strategy.progress is before


def test_evaluation_is_of_all_clients_and_trains_none(tmp_path):
    grid, strategy = world(tmp_path)
    arrays = to_arrays(strategy.progress.server)
    messages = list(strategy.configure_evaluate(0, arrays, NO_CONFIG, grid))
    assert [m.content.config_records[CONFIG]["clients"] for m in messages] == [[], []]
    metrics = strategy.aggregate_evaluate(0, send_and_receive(grid, messages, 20))
    assert metrics["test/users"] == strategy.roster.users
    assert strategy.last_evaluation == dict(metrics)
    assert strategy.aggregate_evaluate(0, []) is None


def test_start_runs_all_rounds_and_saves_each(tmp_path):
    grid, strategy = world(tmp_path, federation__rounds=3)
    seen = {}
    result = strategy.start(
        grid,
        to_arrays(strategy.progress.server),
        num_rounds=3,
        timeout=20,
        evaluate_fn=lambda round_, arrays: seen.update({round_: arrays}),
    )
    expected, _states = plain_loop(strategy.training.settings, nodes=NODES)
    assert_same_server(strategy.progress.server, expected)
    assert list(result.train_metrics_clientapp) == list(seen) == [1, 2, 3]
    assert result.arrays is seen[3]
    log = strategy.training.log
    assert [line["round"] for line in lines(log)] == [0, 1, 2]
    saved = load_checkpoint(log.path("checkpoint-fed-avg"), "fingerprint")
    assert_same_server(saved.server, expected)
    assert saved.pending["round"] == 3


def test_a_round_is_tried_three_times(tmp_path):
    grid, strategy = world(tmp_path, federation__min_clients=4)
    grid.connected = lambda partition: partition == 0
    arrays = to_arrays(strategy.progress.server)
    with pytest.raises(RoundsAbandonedError, match=r"abandoned 3 times.*node 1: not connected"):
        strategy.run_round_with_retries(grid, arrays, 5, NO_CONFIG)
    assert strategy.progress.server.round == 0
    assert torch.equal(
        torch.from_numpy(arrays[SHARED].numpy()),
        torch.from_numpy(to_arrays(strategy.progress.server)[SHARED].numpy()),
    )


def test_the_best_round_is_the_first_of_the_highest():
    def means(value, users=10):
        return {"valid/users": users, "figure": value}

    best = None
    for round_, value in enumerate([0.9, 0.1, 0.3, 0.3, 0.2]):
        best = select_best_round(best, round_, means(value), 10, "figure")
    assert best == {"round": 2, "metrics": means(0.3)}, "of round 0 nothing is known"
    assert select_best_round(best, 5, means(0.8, users=9), 10, "figure") == best
    assert select_best_round(best, 5, None, 10, "figure") == best
