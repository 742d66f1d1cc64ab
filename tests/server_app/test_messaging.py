"""One exchange: when it is over, for the server and for the nodes."""

from __future__ import annotations

import time

import pytest

from server_app.messaging import exchange, request
from tests.helpers.clock import Clock
from tests.integration.loopback import be_the_server


class SilentGrid:
    """Takes messages, answers none; sending takes a while."""

    def __init__(self, sending: float = 0.0) -> None:
        self.sent, self.sending = [], sending

    def push_messages(self, messages):
        self.sent += messages
        for number, message in enumerate(self.sent):
            message.metadata.__dict__["_message_id"] = str(number)
        time.sleep(self.sending)

    def pull_messages(self, _numbers):
        return []


@pytest.fixture(autouse=True)
def server():
    be_the_server()


def test_silence_is_over_in_time_and_named(clock: Clock):
    began = clock.now
    result = exchange(SilentGrid(), "train", {7: request({})}, timeout_seconds=0.5)
    assert clock.now - began == pytest.approx(0.5)
    assert result.problems == {7: "no answer within 0.5 s"}


@pytest.mark.parametrize("sending", [0.3, 0.6])
def test_the_time_for_sending_is_part_of_the_time_for_the_answer(clock: Clock, sending: float):
    began = clock.now
    exchange(SilentGrid(sending), "train", {7: request({})}, timeout_seconds=0.5)
    assert clock.now - began == pytest.approx(max(sending, 0.5))


def test_no_message_is_delivered_long_after_the_wait_for_its_answer(clock: Clock):
    grid = SilentGrid()
    exchange(grid, "train", {7: request({}), 8: request({})}, timeout_seconds=0.3)
    assert [message.metadata.ttl for message in grid.sent] == [pytest.approx(1.3)] * 2
