"""A node that Flower lists, but that never says who it is: it costs a share of a round, no more."""

from __future__ import annotations

import pytest

from pfsr_core.assembly.settings import flat_settings
from pfsr_core.federated.protocol import TRAIN
from server_app.run import run_federation
from tests.integration.helpers import (
    assert_same_server,
    final_server,
    lines,
    plain_loop,
    settings_in,
)
from tests.integration.loopback import LoopbackGrid, partitions

GHOST, DEADLINE = 4242, 2.0


class Haunted(LoopbackGrid):
    """From the first round on Flower lists one more node; it answers nothing."""

    def get_node_ids(self):
        training = any(kind == TRAIN for _partition, kind, _data in self.wire)
        return [*super().get_node_ids(), *([GHOST] if training else [])]

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            if message.metadata.dst_node_id == GHOST:
                message.metadata.__dict__["_message_id"] = "to the ghost"
        return super().push_messages(m for m in messages if m.metadata.dst_node_id != GHOST)


def quiet_in_round_2(partition, request, reply):
    hit = partition == 0 and request.metadata.message_type == TRAIN
    return None if hit and request.metadata.group_id == "2" else reply


@pytest.fixture
def settings(tmp_path):
    return settings_in(tmp_path, federation__round_timeout=DEADLINE)


def test_the_others_train_on_and_the_model_is_theirs(tmp_path, settings, clock):
    server, _states = plain_loop(settings, nodes=2)
    log = run_federation(Haunted(flat_settings(settings), partitions(2, tmp_path)), settings)
    assert [line["answered"] for line in lines(log)[1:]] == [6, 6, 6]
    assert_same_server(final_server(log, "pfsr"), server)


def test_a_round_with_a_ghost_and_a_silent_node_still_closes_by_its_deadline(
    tmp_path, settings, clock
):
    grid = Haunted(flat_settings(settings), partitions(2, tmp_path), quiet_in_round_2)
    second = lines(run_federation(grid, settings))[2]
    assert [drop["node"] for drop in second["dropped"]] == [0]
    assert second["seconds"] == pytest.approx(DEADLINE, abs=1e-3)
