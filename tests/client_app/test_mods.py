"""The last gate: what may not leave does not leave, whoever made it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from client_app import handlers
from client_app.messages import Limits
from client_app.mods import GateError, check_content
from pfsr_core.federated.protocol import METRICS, SHARED
from tests.integration.helpers import settings_in
from tests.integration.loopback import run_loopback

LIMITS = Limits(values=5, longest_list=2)


def reply(array=None, metrics=None, **further):
    array = np.zeros(5, np.float32) if array is None else array
    records = {SHARED: ArrayRecord({SHARED: Array(array)}), METRICS: MetricRecord(metrics or {})}
    return RecordDict({**records, **further})


def test_what_the_protocol_names_passes():
    check_content(reply(metrics={"norms": [1.0, 2.0]}), LIMITS, (SHARED, METRICS))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (reply(np.zeros(6, np.float32)), "5 values"),
        (reply(np.zeros((5, 1), np.float32)), "5 values"),
        (reply(np.zeros(5)), "float64"),
        (reply(extra=ArrayRecord({"x": Array(np.zeros(1))})), "extra"),
        (reply(extra=ConfigRecord({"x": "a secret"})), "extra"),
        (reply(metrics={"norms": [1.0] * 3}), "3 values"),
        (RecordDict({METRICS: MetricRecord({})}), "records"),
    ],
)
def test_anything_else_is_stopped(content, words):
    with pytest.raises(GateError, match=words):
        check_content(content, LIMITS, (SHARED, METRICS))


def test_a_second_array_and_another_name_are_stopped():
    two = reply()
    two[SHARED] = ArrayRecord({SHARED: Array(np.zeros(5, np.float32)), "b": Array(np.zeros(1))})
    other = reply()
    other[SHARED] = ArrayRecord({"item_embedding.weight": Array(np.zeros(5, np.float32))})
    for content in (two, other):
        with pytest.raises(GateError, match="only shared leaves"):
            check_content(content, LIMITS, (SHARED, METRICS))


def test_a_mistake_in_an_algorithm_ends_at_the_gate(tmp_path, monkeypatch):
    """Node 0's code puts the private table among what it sends: the server never gets it."""
    honest = handlers.pack
    secret = torch.full((41, 8), 0.123)

    def leaking(params):
        return honest({**params, "zz": secret}) if params else honest(params)

    monkeypatch.setattr(handlers, "pack", leaking)
    settings = settings_in(tmp_path, algorithm__name="fed-avg", federation__rounds=1)
    from server_app.strategy import RoundsAbandonedError

    wire = []
    with pytest.raises(RoundsAbandonedError, match="GateError"):
        run_loopback(settings, tmp_path, nodes=2, wire=wire)
    assert wire  # the registrations
    assert secret.numpy()[0].tobytes() not in b"".join(data for _p, _kind, data in wire)
