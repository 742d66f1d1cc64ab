"""Checkpoints: whole or not at all, and only for the model they were made of."""

from __future__ import annotations

import pytest
import torch

from pfsr_core.federated.algorithm import ServerState
from server_app.checkpoints import (
    CHECKPOINT_FILE,
    CheckpointError,
    Progress,
    load_checkpoint,
    save_checkpoint,
)

PROGRESS = Progress(
    server=ServerState(
        {"b": torch.tensor([0.1, -0.0]), "a": torch.eye(2)},
        3,
        {"target-norm": 0.1 + 0.2},
        {"b": torch.ones(2) / 3},
    ),
    last_rounds={"group-00": 3, "group-01": 1},
    pending={"round": 3, "dropped": [{"node": 1, "reason": "ä"}]},
    best={"round": 2, "metrics": {"valid/seen-filtered/ndcg@10": 1 / 3}},
    bytes_down=1,
    bytes_up=2,
    seconds=1.5,
)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    save_checkpoint(tmp_path, PROGRESS, "mark")
    found = load_checkpoint(tmp_path, "mark")
    assert list(found.server.params) == list(PROGRESS.server.params)
    for part in ("params", "slots"):
        for name, tensor in getattr(PROGRESS.server, part).items():
            assert torch.equal(getattr(found.server, part)[name], tensor)
    assert found.server.signals == PROGRESS.server.signals
    for name in ("last_rounds", "pending", "best", "bytes_down", "bytes_up", "seconds"):
        assert getattr(found, name) == getattr(PROGRESS, name)


def test_an_algorithm_without_shared_parameters_has_checkpoints_too(tmp_path):
    save_checkpoint(tmp_path, Progress(ServerState({}, 2)), "mark")
    assert load_checkpoint(tmp_path, "mark").server == ServerState({}, 2)


def test_no_checkpoint_is_none(tmp_path):
    assert load_checkpoint(tmp_path / "nowhere", "mark") is None


def test_another_model_is_refused_with_both_names(tmp_path):
    save_checkpoint(tmp_path, PROGRESS, "mark")
    with pytest.raises(CheckpointError, match=r"mark.*other"):
        load_checkpoint(tmp_path, "other")


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_half_a_file_is_refused(tmp_path, keep):
    save_checkpoint(tmp_path, PROGRESS, "mark")
    path = tmp_path / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path, "mark")
