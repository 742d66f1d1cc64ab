"""The market arms: their records say what each market reached, and the tables what records say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.arms.markets import START, market_arms, mean_cosine, run_market_arm
from experiments.records import RecordStore
from experiments.tables.comparison import Records
from experiments.tables.markets import (
    claim_table,
    compare_market,
    cosine_table,
    load_market_records,
    market_table,
    report,
    shipping_table,
)
from pfsr_core.evaluation.ranking import per_user
from pfsr_core.settings.fields import Value
from tests.helpers.tiny import tiny_settings

MARKETS: dict[str, Value] = {
    "data__path": "users=27,items=40,seed=3,mean_length=12,markets=3",
    "federation__partition": "column",
    "federation__column": "market",
    "federation__rounds": 2,
    "model__items": "adapted",
    "algorithm__finetune": True,
    "train__semantic_share": 0.3,
    "run__selected_by": "clients",
    "run__serve_round": "best",
}
EVERYWHERE = {"market-market-0", "market-market-1", "market-market-2"}


def record(arm: str, **changes: Value) -> dict[str, Any]:
    """A run of an arm on a tiny world, as its file would be read."""
    chosen = {"algorithm__name": "fecosr", **MARKETS, **changes}
    chosen |= {key.replace(".", "__").replace("-", "_"): v for key, v in market_arms()[arm].items()}
    found = run_market_arm(arm, tiny_settings(**chosen), every=1)
    written = {"arm": arm, "seed": 0, "cpu_seconds": 1.0, **found}
    return dict(json.loads(json.dumps(written)))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    store = RecordStore(tmp_path_factory.mktemp("arms"))
    for name in ("fecosr", "fecosr, cross-entropy", "one to one", "pooled", "baselines"):
        store.append(record(START + name))
    store.append({"arm": "pfsr", "seed": 0})
    return load_market_records(store)


def test_every_part_has_every_market_and_user(records: Any) -> None:
    assert list(records["fecosr"][0]["parts"]) == ["pretrained", "shipped", "federated", "local"]
    assert list(records["one to one"][0]["parts"]) == ["pretrained", "shipped"]
    for arm in records.values():
        for part in arm[0]["parts"].values():
            assert part.keys() == EVERYWHERE
            for market in part.values():
                ranks = np.array(list(market["ranks"].values()))
                assert len(ranks) == market["users"] == 9
                assert market["test"] == pytest.approx(per_user(ranks, "ndcg@10").mean())


def test_a_market_ships_the_better_one_on_validation(records: Any) -> None:
    found = records["fecosr"][0]
    for market in EVERYWHERE:
        federated, local = (found["parts"][way][market] for way in ("federated", "local"))
        assert found["ships_federated"][market] == (federated["valid"] > local["valid"])
        shipped = federated if found["ships_federated"][market] else local
        assert found["parts"]["shipped"][market] == shipped


def test_updates_are_compared_where_several_markets_train(records: Any) -> None:
    for arm, several in (("fecosr", True), ("one to one", False), ("pooled", False)):
        cosines = records[arm][0]["cosines"]
        assert list(cosines) == ["1", "2"]
        assert all((value is not None) == several for value in cosines.values())
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
    assert mean_cosine([a, b, -a]) == pytest.approx((2**-0.5 - 1 - 2**-0.5) / 3)
    assert mean_cosine([a]) is None


def test_an_arm_without_a_second_stage_has_one_part() -> None:
    found = record(f"{START}pfsr", algorithm__name="pfsr", federation__rounds=1)
    assert list(found["parts"]) == ["pretrained"] and not found["ships_federated"]


def test_tables_say_what_the_records_say(records: Any) -> None:
    row = next(line for line in market_table(records) if line.startswith("| fecosr | local "))
    means = [records["fecosr"][0]["parts"]["local"][m]["test"] for m in sorted(EVERYWHERE)]
    cells = row.strip("| ").split(" | ")[3:]
    assert cells == [f"{value:.4f}" for value in (*means, np.mean(means))]
    first, other = ("fecosr", "federated"), ("fecosr", "local")
    interval = compare_market(records, first, other, "market-market-1", [0])
    table = claim_table(records)
    assert f"{interval.difference:+.4f}" in table[2].split(" | ")[3]
    assert any(line.startswith("| federated, not item-kNN | 1 |") for line in table)
    assert len(cosine_table(records)) == 3
    ships = sum(records["fecosr"][0]["ships_federated"].values())
    (row,) = (line for line in shipping_table(records) if line.startswith("| fecosr |"))
    assert sum(int(cell[0]) for cell in row.split(" | ")[1:]) == ships
    text = report(records)
    assert "| fecosr | local | 1 |" in text and "| pooled | shipped | 1 |" in text
    assert "| pooled | pretrained |" not in text and "| baselines | item-knn | 1 |" not in text


def test_nothing_is_said_without_records(tmp_path: Path) -> None:
    assert load_market_records(RecordStore(tmp_path)) == {}
    assert market_table({})[2:] == claim_table({})[2:] == []
    assert report({}) == ""
