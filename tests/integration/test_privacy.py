"""What leaves a node, looked for in the bytes of its answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.data import load_federation
from pfsr_core.assembly.registries import ALGORITHMS
from pfsr_core.federated.protocol import TRAIN
from pfsr_core.models.compressors import USERS
from pfsr_core.models.item_scorer import ROWS
from pfsr_core.models.parameter_names import ITEMS, PROJECTION, RESIDUAL
from pfsr_core.serving.node_store import NodeStore
from pfsr_core.serving.recommend import recommend
from tests.helpers.tiny import ITEMS_OF
from tests.integration.helpers import final_server, settings_in, stored_states
from tests.integration.loopback import run_loopback

PRIVATE = {"private": ITEMS, "semantic": RESIDUAL}  # by mode, its name in a state
PAIRS = [
    *((name, *mode) for name in ALGORITHMS if name not in ITEMS_OF for mode in PRIVATE.items()),
    ("pfedrec", "shared", ROWS),
    ("fecosr", "adapted", f"/{PROJECTION}"),
]


def pieces(tensor: torch.Tensor) -> list[bytes]:
    """Every row of a tensor as it would look on a wire, if it is long enough to be recognised."""
    rows = tensor.detach().float().reshape(-1, tensor.shape[-1] if tensor.dim() else 1)
    return [row.numpy().tobytes() for row in rows if row.numel() >= 4 and bool(row.any())]


def all_bytes(grid, kinds=None) -> bytes:
    return b"".join(data for _p, kind, data in grid.wire if kinds is None or kind in kinds)


@pytest.mark.parametrize(("algorithm", "items", "private"), PAIRS)
def test_no_row_of_a_private_tensor_is_in_any_answer(tmp_path, algorithm, items, private):
    settings = settings_in(
        tmp_path,
        algorithm__name=algorithm,
        federation__rounds=2,
        algorithm__finetune=True,
        model__items=items,
    )
    log, grid = run_loopback(settings, tmp_path, nodes=2)
    sent = all_bytes(grid)
    states = stored_states(log, settings, tmp_path, nodes=2)
    served = [NodeStore(tmp_path / "state" / f"node-{p}.sqlite").served() for p in (0, 1)]
    finetuned = {name: c.state for s in served for name, c in s.clients.items()}
    assert len(states) == len(finetuned) == 6
    own = [state for s in (states, finetuned) for state in s.values()]
    found = [tensor for state in own for name, tensor in state.items() if private in name]
    rows = [row for tensor in found for row in pieces(tensor)]
    assert len(rows) > 100
    assert not [row for row in rows if row in sent]


@pytest.mark.parametrize(
    ("algorithm", "encoder", "compressor"),
    [("fed-avg", "sasrec", "tokens"), ("pfsr", "gru4rec", "state")],
)
def test_no_memory_and_no_row_of_a_user_is_in_any_answer(tmp_path, algorithm, encoder, compressor):
    """Not in the run that trains them, and not in one that comes after they were served from."""
    settings = settings_in(
        tmp_path,
        algorithm__name=algorithm,
        federation__rounds=2,
        model__encoder=encoder,
        model__compressor=compressor,
        model__recent=4,
        model__personal_memory=True,
    )
    _, grid = run_loopback(settings, tmp_path, nodes=2)
    stores = [NodeStore(tmp_path / "state" / f"node-{p}.sqlite") for p in (0, 1)]
    own = []
    for served in (store.served() for store in stores):
        for part in served.clients.values():
            own += pieces(part.state[USERS])
            for user in part.histories:
                recommend(served, user)
        with served.users.file.open() as file:
            found = file.execute("SELECT digest, tensors FROM memories").fetchall()
        memories = [served.users.file.tensors(blob, digest) for digest, blob in found]
        assert len(memories) == sum(len(part.histories) for part in served.clients.values())
        own += [row for memory in memories for tensor in memory.values() for row in pieces(tensor)]
    again = replace(settings, run=replace(settings.run, name="again"))
    _, later = run_loopback(again, tmp_path, nodes=2)
    sent = all_bytes(grid) + all_bytes(later)
    assert len(own) > 60
    assert not [row for row in own if row in sent]


def test_the_search_would_find_a_row(tmp_path):
    """Shared tensors of the one node that trained them are found by the same search."""
    settings = settings_in(tmp_path, algorithm__name="fed-avg", federation__rounds=1)
    log, grid = run_loopback(settings, tmp_path, nodes=1)
    shared = final_server(log, "fed-avg").params
    rows = [row for tensor in shared.values() for row in pieces(tensor)]
    sent = all_bytes(grid, {TRAIN})
    assert rows
    assert all(row in sent for row in rows)


def test_no_user_and_no_item_is_named_in_any_answer(tmp_path):
    settings = settings_in(tmp_path, federation__rounds=1, algorithm__finetune=True)
    _log, grid = run_loopback(settings, tmp_path, nodes=2)
    federation = load_federation(settings)
    sent = all_bytes(grid)
    users = [user.user.encode() for data in federation.clients for user in data.users]
    items = [item.encode() for item in federation.split.item_ids]
    assert not [name for name in (*users, *items) if name in sent]
    assert b"group-00" in sent  # client names are known to the server, that is the protocol


def test_histories_are_in_no_answer(tmp_path):
    settings = settings_in(tmp_path, federation__rounds=1, algorithm__finetune=True)
    _log, grid = run_loopback(settings, tmp_path, nodes=2)
    sent = all_bytes(grid)
    for data in load_federation(settings).clients:
        for user in data.users:
            for kind in (np.int64, np.int32, np.float32):
                assert user.all_items[:6].astype(kind).tobytes() not in sent


def test_an_answer_has_one_array_of_the_shared_size(tmp_path):
    settings = settings_in(tmp_path, federation__rounds=1)
    algorithm = assemble(settings, load_federation(settings).split.item_ids).algorithm
    seen = []

    def look(_partition, request, reply):
        if request.metadata.message_type == TRAIN:
            arrays = reply.content.array_records
            seen.append({name: {k: v.shape for k, v in r.items()} for name, r in arrays.items()})
        else:
            assert not reply.content.array_records
        return reply

    run_loopback(settings, tmp_path, nodes=2, tamper=look)
    size = sum(torch.Size(shape).numel() for shape in algorithm.client.reply_shapes.values())
    assert seen == [{"shared": {"shared": (size,)}}] * 2
