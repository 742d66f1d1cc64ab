"""Clipped rows: the bound holds in what leaves a node, and what is within it is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pfsr_core.algorithms.clipping import clip_rows
from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.data import load_federation
from pfsr_core.federated.aggregation import unpack_shared
from pfsr_core.federated.protocol import SHARED, TRAIN
from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.params import Params, distance
from pfsr_core.settings.fields import SettingsError, Value
from tests.helpers.tiny import tiny_world
from tests.integration.helpers import settings_in
from tests.integration.loopback import run_loopback
from tests.pfsr_core.algorithms.sign_attack import guess, precision_recall

SENDS_ROWS = [
    ("pfedrec", "shared", 0.2),
    ("fed-avg", "shared", 0.004),
    ("fed-avg", "dual", 0.004),
    ("pfsr", "dual", 0.004),
]
"""Algorithm, item mode, and a bound that some rows of the tiny federation reach."""


def test_rows_by_hand() -> None:
    sent = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [2.0, 0.0]])
    reply = sent + torch.tensor([[0.0, 0.0], [3.0, -4.0], [0.3, -0.4], [0.5, 0.0]])
    found = clip_rows(sent, reply, 0.5)
    torch.testing.assert_close(
        found - sent,
        torch.tensor([[0, 0], [0.3, -0.4]] * 2)[[0, 1, 1, 0]]
        + torch.tensor([[0, 0], [0, 0], [0, 0], [0.5, 0.0]]),
    )
    assert torch.equal(found[2:], reply[2:])
    assert clip_rows(sent, reply, 5.5) is reply


@pytest.mark.parametrize(("algorithm", "items", "bound"), SENDS_ROWS)
def test_an_update_is_clipped_where_it_is_too_long_and_nowhere_else(
    algorithm: str, items: str, bound: float
) -> None:
    changes: dict[str, Value] = {"algorithm__name": algorithm, "model__items": items}
    _, federation, free = tiny_world(**changes)
    _, _, bounded = tiny_world(**changes, algorithm__max_row_change=bound)
    server, data = free.algorithm.server.init(), federation.clients[0]
    state, sent = free.algorithm.client.init(data), server.params
    before = free.algorithm.client_update(server.broadcast(), state, data)
    after = bounded.algorithm.client_update(server.broadcast(), state, data)
    moves = before.params[ITEMS] - sent[ITEMS], after.params[ITEMS] - sent[ITEMS]
    lengths, clipped = (torch.linalg.vector_norm(move, dim=1) for move in moves)
    long = lengths > bound
    assert 0 < int(long.sum()) < len(long)
    assert clipped[long].numpy() == pytest.approx(bound, rel=1e-3)
    assert torch.equal(after.params[ITEMS][~long], before.params[ITEMS][~long])
    torch.testing.assert_close(
        moves[1][long] * (lengths[long] / bound)[:, None], moves[0][long], rtol=1e-2, atol=1e-4
    )
    for name in before.params:
        assert name == ITEMS or torch.equal(after.params[name], before.params[name])
    for name in before.state:
        assert torch.equal(after.state[name], before.state[name]), "what stays is not clipped"
    assert after.norm == pytest.approx(float(distance(after.params, sent)))
    assert after.norm < before.norm


@pytest.mark.parametrize(("algorithm", "items", "bound"), SENDS_ROWS)
def test_the_bound_holds_in_the_bytes_of_every_reply(
    tmp_path: Path, algorithm: str, items: str, bound: float
) -> None:
    """Of clients alone on their nodes, and of the mean of several."""
    settings = settings_in(
        tmp_path,
        algorithm__name=algorithm,
        model__items=items,
        algorithm__max_row_change=bound,
        federation__clients=3,
        federation__rounds=2,
    )
    shapes = assemble(settings, load_federation(settings).catalogue).algorithm.client.reply_shapes
    longest: list[float] = []

    def shared_of(message) -> Params:  # type: ignore[no-untyped-def]
        return unpack_shared(message.content.array_records[SHARED][SHARED].numpy(), shapes)

    def look(_partition, request, reply):  # type: ignore[no-untyped-def]
        if request.metadata.message_type == TRAIN:
            change = shared_of(reply)[ITEMS] - shared_of(request)[ITEMS]
            longest.append(float(torch.linalg.vector_norm(change, dim=1).max()))
        return reply

    run_loopback(settings, tmp_path, nodes=2, tamper=look)
    assert len(longest) == 2 * 2
    assert max(longest) <= bound * (1 + 1e-4)
    assert max(longest) > 0.9 * bound, "and it was reached"


def test_clipping_hides_no_sign() -> None:
    found = []
    for bound in (0.0, 0.01):
        _, federation, assembly = tiny_world(
            algorithm__name="pfedrec",
            federation__partition="user",
            train__batch_size=16,
            algorithm__max_row_change=bound,
        )
        server, data = assembly.algorithm.server.init(), federation.clients[0]
        state = assembly.algorithm.client.init(data)
        reply = assembly.algorithm.client_update(server.broadcast(), state, data)
        guessed = guess(server.params[ITEMS], reply.params[ITEMS])
        found.append(precision_recall(guessed, data.touched))
    assert found[0] == found[1]


@pytest.mark.parametrize("items", ["private", "semantic"])
def test_without_rows_that_are_sent_a_bound_is_refused(items: str) -> None:
    with pytest.raises(SettingsError, match=r"max-row-change = 0\.0"):
        tiny_world(algorithm__name="fed-avg", model__items=items, algorithm__max_row_change=1.0)


def test_who_sends_nothing_is_left_as_it_is() -> None:
    _, _, assembly = tiny_world(
        algorithm__name="local-only", model__items="shared", algorithm__max_row_change=1.0
    )
    assert assembly.algorithm.client.reply_shapes == {}
