"""The item modes: what a client's item vectors are, what is sent, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pfsr_core.assembly.assemble import assemble, local_training
from pfsr_core.assembly.data import FederatedDataset
from pfsr_core.assembly.registries import ALGORITHMS, ENCODERS
from pfsr_core.data.client_dataset import ClientDataset, UserHistory
from pfsr_core.data.errors import DataError
from pfsr_core.evaluation.scoring import effective_model, make_scorer
from pfsr_core.federated.algorithm import ClientUpdate
from pfsr_core.federated.model import Assembly
from pfsr_core.items.adapter import SCALE
from pfsr_core.items.modes import ItemCatalogue
from pfsr_core.items.tables import OWN_ROWS
from pfsr_core.models.compressors import USERS
from pfsr_core.models.parameter_names import BIAS, FACTORS, ITEMS, PROJECTION, RESIDUAL
from pfsr_core.params import Params, pack
from pfsr_core.settings.fields import SettingsError, Value
from pfsr_core.training.local import Job
from pfsr_core.training.loop import train
from pfsr_core.training.task import client_item_index
from tests.helpers.tiny import ITEMS_OF, tiny_settings, tiny_world

MODES = ("dual", "semantic")
NO_ROWS = {OWN_ROWS: torch.zeros(1, dtype=torch.long)}


def whole(assembly: Assembly, data: ClientDataset) -> Params:
    return {**assembly.task.partition.init_shared(), **assembly.task.partition.init_private(data)}


@pytest.mark.parametrize("items", MODES)
def test_a_residual_adds_to_the_rows_of_the_clients_own_items_alone(items: str) -> None:
    _, federation, assembly = tiny_world(model__items=items)
    data, task = federation.clients[0], assembly.task
    params = whole(assembly, data)
    before = effective_model(task, params, data)[ITEMS]
    assert len(before) == data.num_items + 1 and not before[0].any()
    residual = torch.randn(params[RESIDUAL].shape)
    residual[0] = 0
    after = effective_model(task, {**params, RESIDUAL: residual}, data)[ITEMS]
    expected = before.clone()
    expected[data.touched] += residual[1:]
    torch.testing.assert_close(after, expected)


def test_a_semantic_vector_is_the_projection_of_a_public_one() -> None:
    """Items of the same words and id-dim 0 have the same vector, whatever the projection is."""
    settings = tiny_settings(model__items="semantic", model__id_dim=0)
    texts = ("red car", "red car", "blue car", "blue sea")
    assembly = assemble(settings, ItemCatalogue(("a", "b", "c", "d"), texts))
    params = {**assembly.task.partition.init_shared(), RESIDUAL: torch.zeros(1, 8)}
    rows = assembly.task.items.materialize(params, NO_ROWS)[ITEMS]
    torch.testing.assert_close(rows[1], rows[2])
    assert not torch.allclose(rows[1], rows[3])
    told_apart = assemble(
        tiny_settings(model__items="semantic"), ItemCatalogue(("a", "b", "c", "d"), texts)
    ).task
    params = {**told_apart.partition.init_shared(), RESIDUAL: torch.zeros(1, 8)}
    rows = told_apart.items.materialize(params, NO_ROWS)[ITEMS]
    assert not torch.allclose(rows[1], rows[2], atol=1e-3)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("items", MODES)
def test_every_item_can_be_ranked_and_the_future_does_not_leak(items: str, encoder: str) -> None:
    settings, federation, assembly = tiny_world(
        model__items=items, model__encoder=encoder, federation__partition="user"
    )
    data, task = federation.clients[0], assembly.task
    params = whole(assembly, data)
    history = np.arange(1, data.num_items + 1)[: settings.model.max_length]
    scores = make_scorer(task, params, data, settings.model.max_length)([history])
    assert bool(scores[0, 1:].isfinite().all())
    model = effective_model(task, params, data)
    one, other = torch.from_numpy(history)[None], torch.from_numpy(history)[None].clone()
    other[0, 5:] = 1
    hidden = [task.model.apply(model, items_, None)[0, :5] for items_ in (one, other)]
    torch.testing.assert_close(hidden[0], hidden[1])


def of_length(federation: FederatedDataset, name: str, length: int, seed: int) -> ClientDataset:
    """A client of one user with ``length`` training items."""
    items = len(federation.split.item_ids)
    codes = np.random.default_rng(seed).permutation(np.tile(np.arange(1, items + 1), 20))
    user = UserHistory(name, codes[:length], valid=int(codes[-2]), test=int(codes[-1]))
    return ClientDataset(name, (user,), federation.split.item_ids)


def sent(assembly: Assembly, data: ClientDataset) -> tuple[ClientUpdate, dict[str, Tensor]]:
    """A client's reply, and where it differs from what the client received."""
    algorithm = assembly.algorithm
    server = algorithm.server.init()
    update = algorithm.client_update(server.broadcast(), algorithm.client.init(data), data)
    return update, {n: update.params[n] != server.params[n] for n in server.params}


@pytest.mark.parametrize("items", MODES)
@pytest.mark.parametrize("name", [n for n in ALGORITHMS if n not in ("local-only", *ITEMS_OF)])
def test_a_reply_looks_alike_after_5_and_500_interactions(name: str, items: str) -> None:
    """The same names, sizes and bytes, and the same coordinates moved."""
    changes: dict[str, Value] = {"algorithm__name": name, "model__items": items}
    changes["model__dropout"] = 0.0
    if items == "semantic":
        changes["model__item_vectors"] = "hashed"  # no coordinate is 0 there
    _, federation, assembly = tiny_world(**changes)
    few, many = of_length(federation, "few", 5, 0), of_length(federation, "many", 500, 1)
    assert (few.num_interactions, many.num_interactions) == (5, 500)
    (one, moved), (other, moved_too) = sent(assembly, few), sent(assembly, many)
    assert pack(one.params).nbytes == pack(other.params).nbytes
    tensor = PROJECTION if items == "semantic" else ITEMS
    assert torch.equal(moved[tensor], moved_too[tensor])
    rows = moved[tensor] if items == "semantic" else moved[tensor][1:]
    assert bool(rows.all())


def test_with_sampled_negatives_a_shared_table_would_tell_and_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"negatives with model.items = 'dual'.*negatives = 0"):
        tiny_world(model__items="dual", train__negatives=5)
    tiny_world(model__items="semantic", train__negatives=5)


def moved_rows(items: int, batch_size: int) -> Tensor:
    """How far one step moves the rows of a shared table of ``items`` items: (items, D)."""
    settings, federation, _ = tiny_world()
    ids = tuple(str(i) for i in range(items))
    settings = tiny_settings(model__items="dual", model__dropout=0.0, train__batch_size=batch_size)
    assembly = assemble(settings, ids)
    users = tuple(
        UserHistory(str(u), np.array([1, 2, 3, 4]) + u, valid=1, test=2) for u in range(batch_size)
    )
    data = ClientDataset("c", users, ids)
    before = assembly.task.partition.init_shared()[ITEMS]
    job = Job(whole(assembly, data), data, 0)
    return (train(assembly.task, local_training(settings), job)[0][ITEMS] - before)[1:].abs()


def test_the_step_of_an_items_row_depends_neither_on_the_catalogue_nor_on_the_batch() -> None:
    """Adam's first step is the step size in every coordinate with a gradient, everywhere."""
    for items, batch_size in ((40, 1), (4000, 1), (40, 16), (4000, 16)):
        steps = moved_rows(items, batch_size)[:20]
        assert float(steps.median()) == pytest.approx(0.002, rel=1e-2)


def test_the_projection_has_a_step_size_of_its_own() -> None:
    steps = {}
    for rate in (0.001, 0.004):
        _, federation, assembly = tiny_world(
            model__items="semantic", train__projection_learning_rate=rate, algorithm__name="fed-avg"
        )
        change = sent(assembly, federation.clients[0])[0].params
        start = assembly.task.partition.init_shared()
        steps[rate] = float((change[PROJECTION] - start[PROJECTION]).abs().median())
    assert steps[0.004] > 3 * steps[0.001]


def test_pfsr_masks_the_encoder_and_never_what_makes_item_vectors() -> None:
    for items, tensor in (("shared", ITEMS), ("dual", ITEMS), ("semantic", PROJECTION)):
        _, federation, assembly = tiny_world(model__items=items)
        update, _ = sent(assembly, federation.clients[0])
        data, server = federation.clients[0], assembly.algorithm.server.init()
        again = assembly.algorithm.client_update(server.broadcast(), update.state, data)
        assert again.metrics[f"mask-ratio/{tensor}"] == 0.0
        assert again.metrics["mask-ratio/norm.weight"] > 0.0


@pytest.mark.parametrize("items", MODES)
@pytest.mark.parametrize("name", ["pfsr", "fed-avg", "fed-prox"])
def test_variants_without_and_with_the_private_part(name: str, items: str) -> None:
    _, federation, assembly = tiny_world(algorithm__name=name, model__items=items)
    algorithm, data = assembly.algorithm, federation.clients[0]
    update, _ = sent(assembly, data)
    shared = algorithm.server.init().params
    views = {
        k: view(shared, update.state) for k, view in algorithm.personalization.variants.items()
    }
    assert list(views) == ["global", "global+private"]
    assert not views["global"][RESIDUAL].any()
    assert torch.equal(views["global+private"][RESIDUAL], update.state[RESIDUAL])
    assert update.state[RESIDUAL].any()
    assert all(torch.equal(one[n], shared[n]) for one in views.values() for n in shared)


def test_the_global_view_has_neither_adapter_nor_rows_of_users() -> None:
    _, federation, assembly = tiny_world(
        algorithm__name="fed-avg",
        model__items="adapted",
        model__encoder="sasrec",
        model__compressor="tokens",
        model__recent=4,
        model__personal_memory=True,
    )
    data, algorithm = federation.clients[0], assembly.algorithm
    shared, fresh = algorithm.server.init().params, algorithm.client.init(data)
    update, _ = sent(assembly, data)
    assert all(update.state[name].any() for name in (SCALE, FACTORS, BIAS, USERS))
    found, start = (
        effective_model(
            assembly.task, algorithm.personalization.variants["global"](shared, state), data
        )
        for state in (update.state, fresh)
    )
    assert torch.equal(found[ITEMS], start[ITEMS]) and not found[USERS].any()


def test_a_private_table_has_no_view_without_it() -> None:
    for items in ("private", "shared"):
        assert not tiny_world(model__items=items)[2].algorithm.personalization.variants


def test_other_texts_make_another_model() -> None:
    settings, federation, assembly = tiny_world(model__items="semantic")
    catalogue = federation.catalogue
    other = replace(catalogue, texts=("something else", *catalogue.texts[1:]))
    assert assemble(settings, other).fingerprint != assembly.fingerprint
    with pytest.raises(DataError, match="no titles"):
        assemble(settings, ItemCatalogue(catalogue.item_ids))
    server = assemble(settings, ItemCatalogue(catalogue.item_ids, known=False))
    assert server.algorithm.client.reply_shapes == assembly.algorithm.client.reply_shapes


def test_the_same_item_has_the_same_vector_on_nodes_with_other_items() -> None:
    changes: dict[str, Value] = {"model__items": "semantic", "model__item_vectors": "hashed"}
    settings, federation, assembly = tiny_world(**changes)
    ids, texts = federation.catalogue.item_ids[10:20], federation.catalogue.texts[10:20]
    other = assemble(settings, ItemCatalogue(ids, texts))
    params = {**assembly.task.partition.init_shared(), RESIDUAL: torch.zeros(1, 8)}
    rows, few = (one.task.items.materialize(params, NO_ROWS)[ITEMS] for one in (assembly, other))
    torch.testing.assert_close(few[1:], rows[11:21])
    assert other.vectors_method == assembly.vectors_method
    assert other.vectors_digest != assembly.vectors_digest


def test_own_rows_are_those_of_the_residual() -> None:
    _, federation, assembly = tiny_world(model__items="semantic")
    clients: Sequence[ClientDataset] = federation.clients
    for data in clients:
        rows = client_item_index(assembly.task, data)[OWN_ROWS]
        assert rows.tolist() == [0, *data.touched]
        assert len(rows) == len(assembly.task.partition.init_private(data)[RESIDUAL])
