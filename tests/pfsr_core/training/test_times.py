"""Times of interactions: from a log to the encoders that read them, and to no other."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client_app.handlers import finish
from client_app.hosted_node import Node, make_node
from pfsr_core.algorithms.variable_response import client_samples, target_log_probability
from pfsr_core.assembly.assemble import assemble, local_training
from pfsr_core.data.client_dataset import ClientDataset, UserHistory, unknown_times
from pfsr_core.data.filters import select_rows
from pfsr_core.data.readers.s3rec import read_s3rec
from pfsr_core.data.splits import leave_one_out
from pfsr_core.evaluation.batched import evaluate_together
from pfsr_core.evaluation.client import evaluate_client
from pfsr_core.evaluation.scoring import make_scorer
from pfsr_core.federated.model import Assembly
from pfsr_core.federated.protocol import Instruction
from pfsr_core.params import Params, pack
from pfsr_core.serving.recommend import recommend
from pfsr_core.training.batched_fisher import client_fishers
from pfsr_core.training.local import Job
from pfsr_core.training.loop import train
from pfsr_core.training.padding import pad_times
from pfsr_core.training.steps import client_windows, steps
from pfsr_core.training.task import Task
from pfsr_core.training.windows import prefix_samples
from tests.helpers.tiny import tiny_settings, tiny_world
from tests.pfsr_core.data.helpers import log_of

HSTU = {"model__encoder": "hstu", "model__dropout": 0.0}


def client(*histories: list[tuple[int, int]]) -> ClientDataset:
    """Users of (item, seconds); the last two are held out."""
    users = tuple(
        UserHistory(
            str(number),
            np.array([item for item, _ in history[:-2]], np.int64),
            history[-2][0],
            history[-1][0],
            np.array([time for _, time in history], np.int64),
        )
        for number, history in enumerate(histories)
    )
    return ClientDataset("c", users, tuple(map(str, range(1, 41))))


def without_times(data: ClientDataset) -> ClientDataset:
    return replace(data, users=tuple(replace(user, times=unknown_times()) for user in data.users))


def started(task: Task, data: ClientDataset) -> Params:
    """Parameters whose biases of time are not close to nothing."""
    params = {**task.partition.init_shared(), **task.partition.init_private(data)}
    generator = torch.Generator().manual_seed(2)
    return {
        name: torch.randn(tensor.shape, generator=generator) if "time_bias" in name else tensor
        for name, tensor in params.items()
    }


class TestData:
    def test_a_split_keeps_times_in_the_order_of_the_history(self) -> None:
        log = log_of([("u", "a", 9), ("u", "b", 2.9), ("u", "c", -1.5), ("u", "d", 9)])
        (user,) = leave_one_out(log).users
        assert user.times.tolist() == [-2, 2, 9, 9]
        assert user.history_times("valid").tolist() == [-2, 2]
        assert user.history_times("test").tolist() == [-2, 2, 9]

    def test_times_beyond_64_bits_are_late(self) -> None:
        log = log_of([("u", "a", 1.0), ("u", "b", 1e300), ("u", "c", -1e300)])
        (user,) = leave_one_out(log).users
        assert user.times.tolist() == [-(2**61), 1, 2**61]

    def test_positions_are_no_times(self, tmp_path: Path) -> None:
        path = tmp_path / "log.txt"
        path.write_text("1 5 6 7 8\n2 5 6 8\n")
        log = read_s3rec(path)
        for one in (log, select_rows(log, log.users == 0)):
            user = leave_one_out(one).users[0]
            assert len(user.times) == 0
            assert user.history_times("test").tolist() == [0, 0, 0]


class TestTraining:
    DATA = client(
        [(1, 10), (2, 20), (3, 30), (4, 40), (5, 50), (6, 60), (7, 70)],
        [(8, 5), (9, 6), (1, 7), (2, 8)],
    )

    def test_windows_by_hand(self) -> None:
        _, _, assembly = tiny_world(**HSTU, model__items="shared")
        training = replace(local_training(tiny_world()[0]), max_length=3)
        windows = client_windows(assembly.task, training, self.DATA)
        assert windows.items.tolist() == [[2, 3, 4, 5], [1, 2, 0, 0], [8, 9, 0, 0]]
        assert windows.times is not None
        assert windows.times.tolist() == [[20, 30, 40, 50], [10, 20, 0, 0], [5, 6, 0, 0]]

    def test_a_step_has_the_times_of_its_inputs(self) -> None:
        settings, _, assembly = tiny_world(**HSTU, model__items="shared")
        training, job = local_training(settings), Job({}, self.DATA, 1)
        windows = client_windows(assembly.task, training, self.DATA)
        (step,) = steps(assembly.task, training, job, windows)
        assert step.times is not None and step.times.shape == step.inputs.shape
        first = step.inputs[:, 0].tolist().index(1)
        assert step.times[first].tolist() == [10, 20, 30, 40]

    def test_prefixes_by_hand(self) -> None:
        generator = torch.Generator().manual_seed(0)
        samples = prefix_samples(self.DATA, 3, 99, generator, with_times=True)
        assert samples.times is not None
        assert torch.equal(samples.times[:, 0] > 0, samples.prefixes[:, 0] > 0)
        users = [10 * samples.prefixes, samples.prefixes - 3]
        right = [torch.where(samples.prefixes > 0, one, 0) for one in users]
        of_first = (samples.prefixes[:, :1] < 8).expand_as(samples.prefixes)
        assert torch.equal(samples.times, torch.where(of_first, *right))

    def test_padded_as_the_items_are(self) -> None:
        items = torch.tensor([[4, 5, 6], [7, 0, 0], [8, 9, 0]])
        known = [np.array([1, 2, 3, 4]), np.array([5]), unknown_times()]
        assert pad_times(known, items).tolist() == [[2, 3, 4], [5, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("encoder", ["hstu", "sasrec"])
def test_times_change_what_reads_them_and_nothing_else(encoder: str) -> None:
    """Training, Fisher information and scores; bit for bit the same where no times are read."""
    settings, federation, assembly = tiny_world(**{**HSTU, "model__encoder": encoder})
    task, training, reads = assembly.task, local_training(settings), encoder == "hstu"
    assert task.model.reads_times == reads
    outcomes: list[list[Params]] = []
    for data in (federation.clients[0], without_times(federation.clients[0])):
        job = Job(started(task, data), data, 1)
        trained, _ = train(task, training, job)
        found = client_samples(task, training, 9, job.params, job)
        fisher = client_fishers(target_log_probability(task), [found], "loop")[0]
        score = make_scorer(task, job.params, data, training.max_length)
        user = data.users[0]
        scores = {"scores": score([user.train], [user.history_times("valid")])}
        outcomes.append([trained, fisher, scores])
    for timed, untimed in zip(*outcomes, strict=True):
        equal = all(torch.equal(timed[name], untimed[name]) for name in timed)
        assert equal == (not reads)


def test_fisher_information_of_clients_together() -> None:
    settings, federation, assembly = tiny_world(**HSTU, federation__partition="user")
    task, training = assembly.task, local_training(settings)
    clients = []
    for data in federation.clients[:4]:
        start = {name: tensor.double() for name, tensor in started(task, data).items()}
        job = Job(start, data, 1)
        clients.append(client_samples(task, training, 7, job.params, job))
    target = target_log_probability(task)
    alone, together = (client_fishers(target, clients, engine) for engine in ("loop", "batched"))
    for expected, found in zip(alone, together, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)


def test_evaluation_reads_them_one_by_one_and_together() -> None:
    changes = {**HSTU, "model__items": "shared", "federation__partition": "user"}
    settings, federation, assembly = tiny_world(**changes)
    task, length = assembly.task, settings.model.max_length
    ranks = []
    for clients in (federation.clients, [without_times(data) for data in federation.clients]):
        models = [started(task, data) for data in clients]
        together = evaluate_together(task, models, clients, length)
        for model, data, found in zip(models, clients, together, strict=True):
            alone = evaluate_client(make_scorer(task, model, data, length), data, "test")
            assert alone.ranks_kept.tolist() == found["test"].ranks_kept.tolist()
        ranks.append([int(found["test"].ranks_kept[0]) for found in together])
    assert ranks[0] != ranks[1]


class TestServing:
    def node(self, directory: Path, encoder: str) -> Node:
        """A node that has finished at once, so that it serves what the run started with."""
        settings = tiny_settings(**{**HSTU, "model__encoder": encoder})
        node = make_node(settings, {"state-dir": str(directory)})
        assembly = assemble(settings, node.dataset.catalogue)
        params = {name: started(assembly.task, node.clients[0])[name] for name in _shared(assembly)}
        names = tuple(node.hosted)
        finish(node, Instruction("run", "pfsr", 0, {}, names, install=True), pack(params))
        return node

    @pytest.mark.parametrize("encoder", ["hstu", "sasrec"])
    def test_a_node_keeps_times_for_a_model_that_reads_them(
        self, tmp_path: Path, encoder: str
    ) -> None:
        node = self.node(tmp_path, encoder)
        for name, part in node.store.served().clients.items():
            users = node.hosted[name].users if encoder == "hstu" else ()
            assert part.times == {user.user: user.times.tolist() for user in users}
            assert all(len(part.times[user]) == len(part.histories[user]) for user in part.times)

    def test_recommendations_are_scored_with_stored_times(self, tmp_path: Path) -> None:
        node = self.node(tmp_path, "hstu")
        served, settings = node.store.served(), node.settings
        data = node.clients[0]
        user, assembly = data.users[0], assemble(settings, node.dataset.catalogue)
        whole = assembly.algorithm.personalization.model(
            served.shared, served.clients[data.client].state
        )
        score = make_scorer(assembly.task, whole, data, settings.model.max_length)
        given = [node.dataset.split.item_ids[code - 1] for code in user.all_items]
        expected = {
            None: score([user.all_items], [user.times])[0],
            tuple(given): score([user.all_items])[0],
        }
        assert not torch.allclose(*expected.values(), atol=1e-4)
        for items, scores in expected.items():
            for item in recommend(served, user.user, 5, items).recommendations:
                code = served.item_ids.index(item.item) + 1
                assert item.score == pytest.approx(float(scores[code]), abs=1e-6)

    def test_a_store_from_before_there_were_times(self, tmp_path: Path) -> None:
        """Histories alone; so are those of a model that reads no times."""
        store = self.node(tmp_path, "hstu").store
        expected = {name: dict(part.histories) for name, part in store.served().clients.items()}
        with sqlite3.connect(store.path) as file:
            for name, histories in expected.items():
                written = (json.dumps(histories), name)
                file.execute("UPDATE served_clients SET histories = ? WHERE client = ?", written)
        file.close()
        served = store.served()
        assert {name: part.histories for name, part in served.clients.items()} == expected
        assert not any(part.times for part in served.clients.values())
        user = next(iter(next(iter(expected.values()))))
        assert recommend(served, user).recommendations


def _shared(assembly: Assembly) -> list[str]:
    return sorted(assembly.task.partition.shared)
