"""The baselines on ML-100K, one client with everybody, against the figures measured before.

Read from the cache only; nothing is fetched here.
"""

from __future__ import annotations

import pytest

from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.data.datasets import load_dataset
from pfsr_core.data.download import cache_directory
from pfsr_core.data.errors import DataUnavailableError
from pfsr_core.data.splits import leave_one_out
from pfsr_core.evaluation.baselines import BASELINES
from pfsr_core.evaluation.client import evaluate_client
from pfsr_core.evaluation.ranking import means

KEYS = (
    "seen-filtered/hr@10",
    "seen-filtered/ndcg@10",
    "seen-included/hr@10",
    "seen-included/ndcg@10",
)

# Independent measurements, to three decimals. The differences in the last one are explained by
# popularity fitted on the validation items too, and by ties between transitions given away.
REFERENCE = {
    "popularity": (0.086, 0.044, 0.050, 0.022),
    "item-knn": (0.115, 0.062, 0.062, 0.029),
    "markov": (0.145, 0.077, 0.111, 0.056),
}

# Ours, pinned: the number of hits among 943 users, and NDCG to four decimals.
PINNED = {
    "popularity": (79, 0.0432, 47, 0.0220),
    "item-knn": (108, 0.0624, 58, 0.0291),
    "item-knn-recent": (175, 0.1003, 125, 0.0643),
    "item-knn-shrunk": (149, 0.0901, 89, 0.0489),
    "markov": (136, 0.0766, 103, 0.0552),
}


@pytest.fixture(scope="module")
def everybody() -> ClientDataset:
    try:
        interactions = load_dataset("ml-100k", str(cache_directory() / "ml-100k"))
    except DataUnavailableError as error:
        pytest.skip(f"ML-100K is not in the cache, and tests fetch nothing: {error}")
    split = leave_one_out(interactions)
    return ClientDataset("everybody", split.users, split.item_ids)


@pytest.mark.parametrize("name", BASELINES)
def test_anchor(everybody: ClientDataset, name: str) -> None:
    sums = evaluate_client(BASELINES[name](everybody), everybody, "test").sums()
    found = means(sums)
    assert sums["users"] == 943
    if name in REFERENCE:
        assert [found[key] for key in KEYS] == pytest.approx(REFERENCE[name], abs=0.003)
    hits_excluded, ndcg_excluded, hits_kept, ndcg_kept = PINNED[name]
    assert (sums["seen-filtered/hr@10"], sums["seen-included/hr@10"]) == (hits_excluded, hits_kept)
    assert found["seen-filtered/ndcg@10"] == pytest.approx(ndcg_excluded, abs=5e-5)
    assert found["seen-included/ndcg@10"] == pytest.approx(ndcg_kept, abs=5e-5)
