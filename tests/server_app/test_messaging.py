"""One exchange: when it is over, for the server and for the nodes."""

from __future__ import annotations

import time

import pytest

from server_app.messaging import exchange, request
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


def test_silence_is_over_in_time_and_named():
    began = time.monotonic()
    result = exchange(SilentGrid(), "train", {7: request({})}, timeout=0.5)
    assert 0.5 <= time.monotonic() - began < 1.5
    assert result.problems == {7: "no answer within 0.5 s"}


def test_the_time_for_sending_is_part_of_the_time_for_the_answer():
    began = time.monotonic()
    exchange(SilentGrid(sending=0.6), "train", {7: request({})}, timeout=0.5)
    assert time.monotonic() - began < 1.0


def test_no_message_is_delivered_long_after_the_wait_for_its_answer():
    grid = SilentGrid()
    exchange(grid, "train", {7: request({}), 8: request({})}, timeout=0.3)
    assert [message.metadata.ttl for message in grid.sent] == [pytest.approx(1.3)] * 2
