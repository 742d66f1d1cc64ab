"""Variants of one product become one item; repetitions and what is rare go, market by market."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.csv as pa_csv
import pytest

from pfsr.cli.output import cleaning_text
from pfsr_core.assembly.data import load_federation
from pfsr_core.assembly.settings import parse_settings
from pfsr_core.data.cleaning import Cleaned, Cleaning, clean, market_facts
from pfsr_core.data.errors import DataError
from pfsr_core.data.filters import select_rows
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.prepare import clean_copy
from pfsr_core.data.readers.xmarket import read_xmarket
from pfsr_core.data.variants import variant_groups
from tests.pfsr_core.data.helpers import log_of, rows_of, shared_data

CLEAN_XMARKET = {
    "ca": (3702, 2583, 28873),
    "uk": (2270, 1452, 17037),
    "fr": (1299, 825, 9658),
    "de": (1159, 792, 8350),
    "mx": (620, 511, 4411),
    "jp": (284, 274, 1919),
    "in": (44, 51, 282),
}


def reviews(*items: str, users: str = "uvw", time: float = 1.0) -> list[tuple[str, str, float]]:
    """Every user reviews all of the items at one time."""
    return [(user, item, time) for user in users for item in items]


def groups_of(log: Interactions, jaccard: float = 0.3) -> dict[str, str]:
    markets = np.unique(log.columns["market"], return_inverse=True)[1]
    codes = variant_groups(log, jaccard, markets)
    return {raw: log.item_ids[codes[code] - 1] for code, raw in enumerate(log.item_ids, start=1)}


def in_market(rows: list[tuple[str, str, float]], market: str = "x") -> Interactions:
    return log_of(rows, market=[market] * len(rows))


def test_items_with_the_same_reviews_are_one() -> None:
    log = in_market([*reviews("b", "a"), ("u", "c", 2.0), ("v", "c", 2.0), ("w", "c", 2.0)])
    assert groups_of(log) == {"a": "a", "b": "a", "c": "c"}


def test_fewer_than_three_common_reviews_prove_nothing() -> None:
    assert groups_of(in_market(reviews("b", "a", users="uv"))) == {"a": "a", "b": "b"}


def test_the_bar_is_that_of_the_jaccard_index() -> None:
    rows = reviews("a", "b") + reviews("a", users="123") + reviews("b", users="456")
    assert groups_of(in_market(rows), 3 / 9) == {"a": "a", "b": "a"}
    assert groups_of(in_market(rows), 3 / 9 + 0.01) == {"a": "a", "b": "b"}


def test_another_rating_is_another_review() -> None:
    rows = reviews("a", "b")
    log = log_of(rows, market=["x"] * 6, rate=["5.0", "4.0"] * 3)
    assert groups_of(log) == {"a": "a", "b": "b"}
    assert groups_of(in_market(rows)) == {"a": "a", "b": "a"}


def test_variants_of_variants_are_variants() -> None:
    rows = reviews("c", "b") + reviews("b", "a", users="123") + reviews("e", "d", users="456")
    assert groups_of(in_market(rows)) == {"a": "a", "b": "a", "c": "a", "d": "d", "e": "d"}


def test_any_one_market_joins_for_all_and_nothing_is_compared_across() -> None:
    one = reviews("a", "b", users="uvw")
    other = reviews("a", "c", users="12") + reviews("c", users="3")
    third = reviews("a", users="3")
    rows = one + other + third
    log = log_of(rows, market=["x"] * len(one) + ["y"] * len(other) + ["z"] * len(third))
    assert groups_of(log) == {"a": "a", "b": "a", "c": "c"}


def test_it_is_the_same_in_any_order() -> None:
    rng = np.random.default_rng(0)
    rows = [
        (str(rng.integers(6)), str(rng.integers(12)), float(rng.integers(3))) for _ in range(300)
    ]
    log = in_market(rows)
    shuffled = select_rows(log, rng.permutation(len(log)))
    assert groups_of(log, 0.2) == groups_of(shuffled, 0.2)
    assert len(set(groups_of(log, 0.2).values())) < 12


def test_the_first_of_repeated_interactions_stays() -> None:
    rows = [("u", "b", 1.0), ("u", "a", 1.0), ("u", "a", 2.0), *reviews("a", "b", users="vw")]
    found = clean(in_market(rows), Cleaning("market", join_variants=0.3))
    assert found.item_map == {"b": "a"}
    assert rows_of(found.log) == [
        ("u", "a", 1.0),
        ("u", "a", 2.0),
        ("v", "a", 1.0),
        ("w", "a", 1.0),
    ]


def test_nothing_asked_nothing_done() -> None:
    log = in_market([("u", "a", 1.0), ("u", "a", 1.0)])
    assert clean(log, Cleaning()) == Cleaned(log, {})


def test_cores_are_counted_in_each_market_apart() -> None:
    rows = [
        ("u", "a", 1),
        ("u", "b", 2),
        ("v", "a", 1),
        ("v", "b", 2),
        ("w", "a", 1),
        ("w", "c", 2),
    ]
    log = log_of(rows, market=list("xxxxyy"))
    assert len(clean(log, Cleaning(user_core=2, item_core=2)).log) == 4
    alone = select_rows(log, log.columns["market"] == "x")
    apart = clean(log, Cleaning("market", user_core=1, item_core=2)).log
    assert rows_of(apart) == rows_of(clean(alone, Cleaning(user_core=1, item_core=2)).log)


def test_values_are_who_takes_part() -> None:
    log = log_of([("u", "a", 1), ("v", "b", 1)], market=["x", "y"])
    assert rows_of(clean(log, Cleaning("market", ("y",))).log) == [("v", "b", 1.0)]
    with pytest.raises(DataError, match="market = 'z'. Fix: choose among x, y"):
        clean(log, Cleaning("market", ("z",)))
    with pytest.raises(DataError, match="no column 'shop'"):
        clean(log, Cleaning("shop", ("x",)))


def test_a_variant_of_the_history_as_target_is_counted() -> None:
    rows = (
        reviews("a", "b") + [(user, "c", 0.0) for user in "uvw"] + reviews("d", "e", "f", users="z")
    )
    log = in_market(rows)
    before = market_facts(log, "market", 0.3)["x"]
    assert (before["users"], before["items"], before["joined_groups"]) == (4, 6, 1)
    assert before["variant_targets"] == 0.75
    assert before["tied_last_pair"] == 1.0
    joined = replace(log, columns={})
    assert market_facts(joined, "", 0.3)["all"] == before


def test_a_market_without_a_test_item_is_counted_and_stops_nobody() -> None:
    rows = [*reviews("a", "b", "c"), ("z", "a", 0.0), ("z", "b", 1.0)]
    facts = market_facts(log_of(rows, market=["x"] * 9 + ["y"] * 2), "market", 0.3)
    assert facts["x"]["variant_targets"] == 1.0
    assert (facts["y"]["users"], facts["y"]["interactions"]) == (1, 2)
    assert facts["y"]["variant_targets"] is facts["y"]["tied_last_pair"] is None
    line = next(line for line in cleaning_text(facts, {}).splitlines() if line.startswith("y"))
    assert line.split() == ["y", "before", "1", "2", "2", "1", "–", "–"]


def test_variants_are_not_looked_for_without_times() -> None:
    log = replace(in_market(reviews("a", "b")), has_times=False)
    with pytest.raises(DataError, match="has no times.*join-variants = 0.0"):
        clean(log, Cleaning(join_variants=0.3))
    assert clean(log, Cleaning(user_core=1)).item_map == {}


def test_the_clean_copy_is_read_as_what_a_run_cleans_itself(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    items = [f"i{code}" for code in range(8)]
    rows = [
        (f"{market}/{user}", items[code], float(day))
        for market in "xy"
        for user in range(9)
        for day, code in enumerate(rng.permutation(6))
    ]
    twins = [(user, "i9", time) for user, item, time in rows if item == "i0"]
    log = in_market(rows + twins)
    log = replace(log, columns={"market": np.array([log.user_ids[u][0] for u in log.users])})
    table = "\n".join(f"{user},{item},{time},{user[0]}" for user, item, time in rows_of(log))
    source = tmp_path / "raw.csv"
    source.write_text(f"user,item,timestamp,market\n{table}\n")
    rules = Cleaning("market", join_variants=0.3, user_core=4, item_core=2)
    before, after = clean_copy("file", str(source), rules, tmp_path / "clean")
    assert (before["x"]["joined_groups"], after["x"]["joined_groups"]) == (1, 0)
    assert (tmp_path / "clean/items.csv").read_text() == '"item","joined"\n"i9","i0"\n'
    common = {
        "data.source": "file",
        "federation.partition": "column",
        "federation.column": "market",
    }
    itself = {"data.join-variants": 0.3, "data.user-core": 4, "data.item-core": 2}
    copied = load_federation(
        parse_settings({**common, "data.path": str(tmp_path / "clean/interactions.csv")})
    )
    cleaned = load_federation(parse_settings({**common, **itself, "data.path": str(source)}))
    assert cleaned.split.digest == copied.split.digest
    assert [data.client for data in cleaned.clients] == ["market-x", "market-y"]
    raw = load_federation(parse_settings({**common, "data.path": str(source)}))
    assert raw.split.digest != cleaned.split.digest


def test_a_copy_that_was_cut_short_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short(table: object, place: Path) -> None:
        Path(place).write_text('"user","item","timestamp"\n"u","a",1\n')
        raise OSError("no space left on device")

    monkeypatch.setattr(pa_csv, "write_csv", cut_short)
    with pytest.raises(OSError, match="no space"):
        clean_copy("synthetic", "users=20,items=40", Cleaning(join_variants=0.3), tmp_path)
    assert not (tmp_path / "interactions.csv").exists()


def test_xmarket_has_the_size_it_is_known_to_have() -> None:
    log = read_xmarket(str(shared_data("xmarket")))
    before = market_facts(log, "market", 0.3)
    after = market_facts(clean(log, Cleaning("market", (), 0.3, 5, 3)).log, "market", 0.3)
    sizes = {name: (one["users"], one["items"], one["interactions"]) for name, one in after.items()}
    assert sizes == CLEAN_XMARKET
    shares = [one["variant_targets"] for one in before.values()]
    assert (round(min(shares), 3), round(max(shares), 3)) == (0.186, 0.530)
    assert max(one["variant_targets"] for one in after.values()) < 0.001
    assert 0.07 < min(one["tied_last_pair"] for one in after.values()) < 0.08
