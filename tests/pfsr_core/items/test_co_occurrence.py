"""Collaborative item vectors: what they are near to, what they never see, and where they serve."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client_app.hosted_node import NodeError, make_node
from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.data import load_federation
from pfsr_core.data.client_dataset import ItemArray
from pfsr_core.data.errors import DataError
from pfsr_core.files import write_json
from pfsr_core.items.co_occurrence import co_occurrence_vectors
from pfsr_core.items.modes import ItemCatalogue, pooled_vectors
from pfsr_core.items.text_vectors import CO_OCCURRENCE, COLLABORATIVE, ItemVectors, item_vectors
from pfsr_core.reports.page import write_report
from pfsr_core.reports.text_table import final_table
from pfsr_core.serving.node_store import NodeStore
from pfsr_core.serving.recommend import recommend
from tests.helpers.runs import write_run
from tests.helpers.tiny import tiny_settings, tiny_world
from tests.pfsr_core.serving.test_recommend import serve

SEMANTIC = {"model__items": "semantic", "model__item_vectors": CO_OCCURRENCE, "model__text_dim": 6}


def two_worlds() -> list[ItemArray]:
    """Items 1 to 5 and items 6 to 10 never meet."""
    rng = np.random.default_rng(0)
    return [rng.permutation(5) + 1 + 5 * (user % 2) for user in range(20)]


def made(histories: list[ItemArray], dim: int = 4) -> ItemVectors:
    ids = tuple(map(str, range(1, 12)))
    return item_vectors(CO_OCCURRENCE, ids, ("",) * 11, dim, histories)


def test_items_that_occur_together_are_near() -> None:
    rows = made(two_worlds(), 2).rows
    near = rows[:10] @ rows[:10].T
    np.testing.assert_allclose(np.diag(near), 1.0, atol=1e-5)
    assert near[:5, :5].min() > 0.5 and near[5:, 5:].min() > 0.5
    assert np.abs(near[:5, 5:]).max() < 0.1
    assert not rows[10].any()  # in nobody's history


def test_with_every_dimension_it_is_the_ppmi_matrix() -> None:
    """Distances weigh 1, 1 / 2: of 1-2-3 the pair (1, 3) counts half."""
    rows = co_occurrence_vectors([np.array([1, 2, 3])], 3, 3).astype(np.float64)
    counts = np.array([[0, 1, 0.5], [1, 0, 1], [0.5, 1, 0]])
    total = counts.sum(1)
    with np.errstate(divide="ignore"):
        ppmi = np.maximum(np.log(counts * counts.sum() / np.outer(total, total)), 0)
    left, values, _ = np.linalg.svd(ppmi)
    best = (left[:, :2] * values[:2]) @ left[:, :2].T
    np.testing.assert_allclose(rows @ rows.T, best, atol=1e-5)
    assert not rows[:, 2].any()


def test_another_process_makes_the_same_bytes() -> None:
    code = (
        "import sys, numpy as np\n"
        "from pfsr_core.items.co_occurrence import co_occurrence_vectors\n"
        f"histories = [np.array(items) for items in {[one.tolist() for one in two_worlds()]}]\n"
        "sys.stdout.buffer.write(co_occurrence_vectors(histories, 11, 4).tobytes())"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)
    assert done.stdout == co_occurrence_vectors(two_worlds(), 11, 4).tobytes()


def test_the_digest_names_the_histories() -> None:
    histories = two_worlds()
    assert made(histories).digest == made(two_worlds()).digest
    assert made(histories).digest != made([*histories[1:], histories[0][::-1]]).digest
    assert made(histories).digest != made(histories, 3).digest


def test_held_out_items_are_never_looked_at() -> None:
    settings, federation, _ = tiny_world(**SEMANTIC)
    users = tuple(replace(user, valid=1, test=1) for user in federation.split.users)
    other = replace(federation, split=replace(federation.split, users=users))
    one, two = (pooled_vectors(settings.model, of.catalogue) for of in (federation, other))
    assert one is not None and two is not None
    assert np.array_equal(one.rows, two.rows) and one.digest == two.digest


def test_without_histories_it_says_so() -> None:
    with pytest.raises(DataError, match="pools the training histories.*Fix: 'hashed'"):
        assemble(tiny_settings(**SEMANTIC), ItemCatalogue(("a", "b")))


def test_a_node_with_data_of_its_own_refuses_to_pool(tmp_path: Path) -> None:
    config = {"data-path": "users=24,items=40", "name": "shop", "state-dir": str(tmp_path)}
    with pytest.raises(NodeError, match="pools what all clients count.*Fix: .*'hashed'"):
        make_node(tiny_settings(**SEMANTIC), config)


def test_a_served_model_keeps_the_vectors_it_cannot_make(tmp_path: Path) -> None:
    settings = tiny_settings(**SEMANTIC)
    vectors = pooled_vectors(settings.model, load_federation(settings).catalogue)
    made = serve(**SEMANTIC)
    served = replace(made, items=replace(made.items, vectors=vectors, texts=()))
    store = NodeStore(tmp_path / "node.sqlite")
    store.install(served)
    user = next(iter(next(iter(served.clients.values())).histories))
    found = store.served()
    assert found.shared.keys() == served.shared.keys()
    assert recommend(found, user) == recommend(served, user)
    with pytest.raises(DataError, match="pools the training histories"):
        recommend(replace(found, items=replace(found.items, vectors=None)), user)


def test_a_report_says_what_they_are(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    write_run(directory)
    assert COLLABORATIVE not in final_table(directory)
    write_json(directory / "config.json", {"model.item-vectors": CO_OCCURRENCE})
    assert COLLABORATIVE in final_table(directory)
    assert COLLABORATIVE in write_report(directory).read_text("utf-8")
