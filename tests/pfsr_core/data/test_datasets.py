"""The registry: every name loads, and the real sets have the size they are known to have."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pfsr_core.data.datasets import DATASETS, load_dataset
from pfsr_core.data.describe import describe, tied_last_pair
from pfsr_core.data.download import fetch_ml_100k
from pfsr_core.data.errors import DataError, DataUnavailableError
from pfsr_core.data.filters import select_rows
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.splits import leave_one_out
from tests.pfsr_core.data.helpers import log_of, rows_of, shared_data, write


def sizes(log: Interactions) -> tuple[int, int, int]:
    return len(log.user_ids), len(log.item_ids), len(log)


@pytest.fixture(scope="module")
def ml_100k() -> str:
    """Path of ML-100K, from the cache or fetched; its terms forbid laying it beside the tests."""
    try:
        return str(fetch_ml_100k())
    except DataUnavailableError as error:
        pytest.skip(str(error))


def test_ml_100k(ml_100k: str) -> None:
    start = time.process_time()
    log = load_dataset("ml-100k", ml_100k)
    assert time.process_time() - start < 2.0  # 0.3 s on an idle machine
    assert sizes(log) == (943, 1682, 100_000)
    assert len(log.titles) == 1682
    assert rows_of(log)[0] == ("196", "242", 881_250_949.0)
    facts = describe(log, leave_one_out(log))
    assert facts["tied_last_pair"] == pytest.approx(415 / 943)
    assert facts["split_digest"].startswith("4dbec74536cd39a0")
    assert (facts["split_users"], facts["skipped_users"]) == (943, 0)
    assert facts["history_length"]["0"] == 20


def test_ml_100k_with_ties_in_item_order_is_another_split(ml_100k: str) -> None:
    log = load_dataset("ml-100k", ml_100k)
    order = np.argsort([int(item) for item in log.item_ids], kind="stable")
    rank = np.argsort(order)
    by_item = select_rows(log, np.argsort(rank[log.items - 1], kind="stable"))
    ours, theirs = (
        {user.user: log.item_ids[user.test - 1] for user in leave_one_out(log).users}
        for log in (log, by_item)
    )
    changed = sum(ours[user] != theirs[user] for user in ours)
    assert changed > 100


def test_ml_latest_small() -> None:
    log = load_dataset("ml-latest-small", str(shared_data("ml-latest-small")))
    assert sizes(log) == (671, 9066, 100_004)
    assert log.titles["1"] == "Toy Story (1995)"
    assert len(log.titles) == 9066
    assert set(log.columns) == {"rating"}


def test_amazon_beauty() -> None:
    path = shared_data("amazon-beauty")
    start = time.process_time()
    log = load_dataset("amazon-beauty", str(path))
    assert time.process_time() - start < 3.0
    assert sizes(log) == (22_363, 12_101, 198_502)
    split = leave_one_out(log)
    assert (len(split.users), split.num_skipped) == (22_363, 0)
    assert tied_last_pair(log) == 0.0


def test_seven_markets() -> None:
    log = load_dataset("xmarket", str(shared_data("xmarket")))
    users = Counter(user.partition("/")[0] for user in log.user_ids)
    assert np.unique(log.columns["market"]).tolist() == ["ca", "de", "fr", "in", "jp", "mx", "uk"]
    assert (users["in"], users["ca"]) == (239, 4668)
    assert (log.timestamps % 86_400 == 0).all()


def test_synthetic_takes_options() -> None:
    log = load_dataset("synthetic", "users=20, items=30,clusters=3,seed=5,markets=2")
    assert len(log.user_ids) == 20
    assert rows_of(log) == rows_of(
        load_dataset("synthetic", "seed=5,items=30,users=20,clusters=3,markets=2")
    )
    assert len(load_dataset("synthetic").user_ids) == 200


@pytest.mark.parametrize(
    "options",
    ["users", "users=", "users=-1", "user=3", "users=2.5", "a/b.csv", "users=3/4", "sizes=3/x"],
)
def test_synthetic_refuses_other_options(options: str) -> None:
    with pytest.raises(DataError, match="cannot read the option .* Fix: write key=whole number"):
        load_dataset("synthetic", options)


@pytest.mark.parametrize("name", ["ml-latest-small", "amazon-beauty"])
@pytest.mark.parametrize("path", ["", "none", "."])
def test_local_sets_need_their_path(
    name: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataUnavailableError, match="Fix: give the path of"):
        load_dataset(name, path)


@pytest.mark.parametrize("path", ["~", "~/ratings.csv"])
def test_local_sets_are_found_at_home(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "ratings.csv", "userId,movieId,rating,timestamp\n1,2,3,4\n")
    assert rows_of(load_dataset("ml-latest-small", path)) == [("1", "2", 4.0)]


def test_ml_1m_reads_the_file_it_is_given(tmp_path: Path) -> None:
    write(tmp_path / "ratings.dat", "1::1193::5::978300760\n")
    assert rows_of(load_dataset("ml-1m", str(tmp_path))) == [("1", "1193", 978_300_760.0)]


def test_unknown_dataset() -> None:
    with pytest.raises(DataError, match="unknown dataset 'ml-2m'. Fix: choose one of ml-100k"):
        load_dataset("ml-2m")


def test_the_names_are_those_of_the_documents() -> None:
    assert list(DATASETS) == [
        "ml-100k",
        "ml-1m",
        "ml-latest-small",
        "amazon-beauty",
        "xmarket",
        "file",
        "synthetic",
        "synthetic-markets",
        "synthetic-long",
    ]


def test_describe_a_small_log() -> None:
    rows = [
        ("u", "a", 1),
        ("u", "b", 2),
        ("u", "c", 2),
        ("v", "a", 1),
        ("v", "b", 2),
        ("v", "c", 3),
    ]
    log = log_of([*rows, ("w", "a", 1), ("w", "d", 1)])
    split = leave_one_out(log)
    assert describe(log, split) == {
        "source": "test",
        "users": 3,
        "items": 4,
        "interactions": 8,
        "density": 8 / 12,
        "history_length": {"0": 2, "0.1": 2, "0.25": 2, "0.5": 3, "0.75": 3, "0.9": 3, "1": 3},
        "mean_history_length": 8 / 3,
        "head_share": 3 / 8,
        "tied_last_pair": 0.5,
        "titles": 0,
        "columns": [],
        "protocol": "strict",
        "split_users": 2,
        "skipped_users": 1,
        "split_digest": split.digest,
    }
