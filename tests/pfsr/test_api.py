"""``import pfsr``: from a DataFrame to a model, its recommendations, its figures and its files."""

from __future__ import annotations

import doctest
import importlib
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import pfsr
from pfsr_core.data.datasets import load_dataset
from pfsr_core.data.readers.frame import read_frame
from pfsr_core.data.splits import leave_one_out
from pfsr_core.items.text_vectors import tf_idf
from pfsr_core.settings.recipes import toml_value
from tests.helpers.command_line import fail, succeed
from tests.helpers.tiny import TINY

WORLD = "users=24,items=40,seed=3,mean_length=12"
SETTINGS = {k: v for k, v in TINY.items() if not k.startswith(("data.", "federation."))}
WORDS = [f"{key}={toml_value(value)}" for key, value in TINY.items()]
SHOPS = ("berlin", "kyoto", "lima")


@pytest.fixture(scope="module")
def log() -> pd.DataFrame:
    frame = pfsr.datasets.load("synthetic", WORLD)
    return frame.assign(shop=[SHOPS[int(user.split("-")[1]) % 3] for user in frame["user"]])


@pytest.fixture(scope="module")
def model(log: pd.DataFrame) -> pfsr.Model:
    return pfsr.fit(
        log, clients="shop", rounds=2, silent=True, **{**SETTINGS, "run.compare": "fed-avg"}
    )


def test_every_exported_name_exists() -> None:
    assert all(hasattr(pfsr, name) for name in pfsr.__all__)
    assert set(pfsr.__all__) <= set(dir(pfsr))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pfsr.nothing


def test_the_import_is_quick() -> None:
    heavy = "{'torch', 'pandas', 'numpy', 'flwr', 'matplotlib', 'typer', 'rich', 'sklearn'}"
    code = f"import sys, pfsr, pfsr.datasets; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_who_is_a_client(model: pfsr.Model, log: pd.DataFrame) -> None:
    assert model.clients == [f"shop-{name}" for name in SHOPS]
    assert sorted(model.users) == sorted(log["user"].unique())
    assert model.client_of(model.users[0]) == "shop-berlin"
    assert repr(model) == "<pfsr.Model pfsr: 24 users in 3 clients, 37 items>"


def test_recommendations_are_new_to_the_user(model: pfsr.Model, log: pd.DataFrame) -> None:
    user = model.users[5]
    found = model.recommend(user, k=5)
    assert found.columns.tolist() == ["item", "score", "title"]
    assert found.index.tolist() == [1, 2, 3, 4, 5]
    assert found["score"].is_monotonic_decreasing
    assert not set(found["item"]) & set(log.loc[log["user"] == user, "item"])
    titles = dict(zip(log["item"], log["title"], strict=True))
    assert found["title"].tolist() == [titles[item] for item in found["item"]]
    assert found.attrs == {"client": model.client_of(user), "source": "model", "skipped": []}


def test_a_new_user_is_answered_by_the_largest_client_or_the_one_named(model: pfsr.Model) -> None:
    history = [*model.items[:3], "unknown"]
    found = model.recommend(history, k=4)
    assert len(found) == 4 and not set(found["item"]) & set(history)
    assert found.attrs["client"] == "shop-berlin"
    assert found.attrs["skipped"] == ["unknown"]
    assert model.recommend(history, client="shop-lima").attrs["client"] == "shop-lima"
    assert "popularity" in model.recommend([]).attrs["source"]


def test_what_cannot_be_answered_says_what_can(model: pfsr.Model) -> None:
    with pytest.raises(pfsr.RecommendationError, match="unknown user 'nobody'.* Fix: .*list of"):
        model.recommend("nobody")
    with pytest.raises(pfsr.RecommendationError, match="unknown client 'shop-rome'"):
        model.recommend(model.users[0], client="shop-rome")
    with pytest.raises(pfsr.RecommendationError, match="k = 0"):
        model.recommend(model.users[0], k=0)
    with pytest.raises(pfsr.RecommendationError, match="lacks nope"):
        model.add(model.users[0], ["nope"])


def test_figures_of_every_method_and_client(model: pfsr.Model) -> None:
    frame = model.evaluate()
    assert frame["method"].iloc[0] == model.algorithm, "what was trained comes before baselines"
    leading = ["method", "client", "users", "interactions", "split", "hr@10", "ndcg@10"]
    assert frame.columns.tolist()[: len(leading)] == leading
    assert {"pfsr", "fed-avg", "popularity", "item-knn", "markov"} <= set(frame["method"])
    assert set(frame["client"]) == set(model.clients)
    assert set(frame["split"]) == {"valid", "test"}
    assert not frame.duplicated(["method", "client", "split"]).any()
    assert frame[["hr@10", "ndcg@10", "covered"]].stack().between(0, 1).all()
    means = model.evaluate(by_client=False)
    assert "client" not in means
    for _, row in means.iterrows():
        same = frame[(frame["method"] == row["method"]) & (frame["split"] == row["split"])]
        assert row["users"] == same["users"].sum() == 24
        assert row["hr@10"] == pytest.approx(np.average(same["hr@10"], weights=same["users"]))


def test_a_saved_model_answers_alike_and_keeps_what_was_added(
    model: pfsr.Model, tmp_path: Path
) -> None:
    model.save(tmp_path / "one")
    other = pfsr.load(tmp_path / "one")
    user = other.users[-1]
    before = other.recommend(user)
    pd.testing.assert_frame_equal(before, model.recommend(user))
    pd.testing.assert_frame_equal(other.evaluate(), model.evaluate())
    other.add(user, [before["item"].iloc[0]])
    assert before["item"].iloc[0] not in set(other.recommend(user, k=40)["item"])
    other.save(tmp_path / "two")
    again = pfsr.load(tmp_path / "two")
    pd.testing.assert_frame_equal(again.recommend(user), other.recommend(user))
    assert before["item"].iloc[0] in set(model.recommend(user)["item"]), "the first is as it was"


def test_saving_replaces_nothing(model: pfsr.Model, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(pfsr.ModelFilesError, match="is there already. Fix: "):
        model.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    with pytest.raises(pfsr.ModelFilesError, match="holds no saved model"):
        pfsr.load(tmp_path)
    with pytest.raises(pfsr.ModelFilesError, match="holds no saved model"):
        pfsr.load(tmp_path / "gone")


def test_the_commands_read_a_saved_model(model: pfsr.Model, tmp_path: Path) -> None:
    model.save(tmp_path / "saved")
    best = model.recommend(model.users[0], k=1)["item"].iloc[0]
    words = ("recommend", "--model", tmp_path / "saved", "-u", model.users[0], "-k", 1)
    assert best in succeed(*words)
    assert "holds no saved model" in fail("recommend", "--model", tmp_path, "-u", "1")
    assert "popularity" in succeed("report", tmp_path / "saved")


def test_a_local_run_is_a_saved_model(tmp_path: Path) -> None:
    succeed("run", "--local", *WORDS, "federation.rounds=1", "--out", tmp_path / "run")
    found = pfsr.load(tmp_path / "run")
    assert len(found.clients) == 6 and len(found.recommend(found.users[0], k=3)) == 3
    assert "pfsr" in set(found.evaluate()["method"])


def test_central_training_ends_with_a_saved_model(tmp_path: Path) -> None:
    succeed("central", *WORDS, "--rounds", 1, "--out", tmp_path / "run")
    found = pfsr.load(tmp_path / "run")
    assert len(found.clients) == 1 and len(found.recommend(found.users[0], k=3)) == 3
    assert "central" in set(found.evaluate()["method"])


def test_a_frame_is_split_like_the_file_that_it_came_from(log: pd.DataFrame) -> None:
    expected = leave_one_out(load_dataset("synthetic", WORLD)).digest
    assert leave_one_out(read_frame(log)).digest == expected
    renamed = log.rename(columns={"user": "user_id", "item": "ItemID", "timestamp": "time"})
    renamed["time"] = pd.to_datetime(renamed["time"], unit="s")
    renamed["user_id"] = renamed["user_id"].astype("category")
    assert leave_one_out(read_frame(renamed)).digest == expected


def test_whole_numbers_that_pandas_holds_as_floats_are_whole_ids() -> None:
    frame = pd.DataFrame({"user": [7.0, 7.0, 7.0], "item": [1, 2, 3], "time": [1, 2, 3]})
    assert read_frame(frame).user_ids == ("7",)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda frame: frame.drop(columns="item"), "no column for the item.* Fix: name one"),
        (lambda frame: frame.drop(columns="time"), "no column for the timestamp"),
        (lambda frame: frame.iloc[:0], "there are no rows"),
        (lambda frame: frame.assign(user=[1.5, 2.0, 3.0]), "'user' are stored as double"),
        (lambda frame: frame.assign(item=[None, "b", "c"]), "line 1: item is missing"),
        (lambda frame: frame.assign(item=["a", 2, 3]), "'item' are of several types"),
        (lambda frame: frame.assign(time=["x", "y", "z"]), "time 'x' is not a finite number"),
        (lambda frame: frame.set_axis(["user", "user", "time"], axis=1), "names 'user' twice"),
        (lambda frame: frame.iloc[:2], "no user has 3 interactions"),
    ],
)
def test_data_that_cannot_be_used_are_named(change, problem: str) -> None:
    frame = pd.DataFrame({"user": ["a"] * 3, "item": ["x", "y", "z"], "time": [1, 2, 3]})
    with pytest.raises(pfsr.DataError, match=problem):
        pfsr.fit(change(frame), clients=1, silent=True)


def test_data_of_another_kind_are_refused() -> None:
    with pytest.raises(pfsr.DataError, match="data is a list. Fix: give a pandas DataFrame"):
        pfsr.fit([1, 2, 3])  # type: ignore[arg-type]
    with pytest.raises(pfsr.DataError, match=r"gone.csv"):
        pfsr.fit("gone.csv", silent=True)


def test_clients_of_an_unknown_column_or_of_too_few_users(log: pd.DataFrame) -> None:
    with pytest.raises(pfsr.DataError, match=r"no column 'market2' \(further columns: .*shop"):
        pfsr.fit(log, clients="market2", silent=True)
    with pytest.raises(pfsr.DataError, match="500 clients for 24 users. Fix: choose 1 to 24"):
        pfsr.fit(log, clients=500, silent=True)


def test_clients_by_number_and_by_user(log: pd.DataFrame) -> None:
    options = {**SETTINGS, "rounds": 1, "baselines": False, "silent": True}
    assert pfsr.fit(log, clients=2, **options).clients == ["group-00", "group-01"]
    alone = pfsr.fit(log, clients="user", algorithm={"name": "fed-avg"}, items="dual", **options)
    assert alone.clients == [f"user-{user}" for user in alone.users]
    assert alone.algorithm == "fed-avg"


def test_a_file_is_fitted_like_its_frame(log: pd.DataFrame, tmp_path: Path) -> None:
    log.to_csv(tmp_path / "log.csv", index=False)
    options = {**SETTINGS, "clients": 3, "rounds": 1, "baselines": False, "silent": True}
    one, two = pfsr.fit(log, **options), pfsr.fit(tmp_path / "log.csv", **options)
    user = one.users[0]
    pd.testing.assert_frame_equal(one.recommend(user), two.recommend(user))


def test_nothing_global_is_changed(log: pd.DataFrame) -> None:
    import matplotlib

    def world() -> tuple[object, ...]:
        return (
            torch.get_rng_state().tolist(),
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
            random.getstate(),
            Path.cwd(),
            dict(os.environ),
            matplotlib.get_backend(),
        )

    before = world()
    found = pfsr.fit(log, clients=2, rounds=1, silent=True, **SETTINGS)
    found.recommend(found.users[0])
    found.evaluate()
    assert world() == before


def test_the_files_of_a_fitted_model_go_with_it(log: pd.DataFrame) -> None:
    found = pfsr.fit(log, clients=2, rounds=1, baselines=False, silent=True, **SETTINGS)
    directory = found.directory
    assert directory.is_dir()
    del found
    assert not directory.parent.exists()


def test_a_progress_bar_unless_silent(
    log: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**SETTINGS, "clients": 2, "rounds": 1, "baselines": False}
    pfsr.fit(log, **options)
    shown = capsys.readouterr()
    assert "1/1" in shown.err and shown.out == ""
    pfsr.fit(log, silent=True, **options)
    assert capsys.readouterr() == ("", "")


def test_datasets_by_name() -> None:
    assert {"ml-100k", "file", "synthetic"} <= set(pfsr.datasets.names())
    with pytest.raises(pfsr.DataError, match="unknown dataset 'netflix'"):
        pfsr.datasets.load("netflix")


@pytest.mark.parametrize("name", ["pfsr.fitting", "pfsr.datasets"])
def test_the_examples_of_the_docstrings_hold(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0 and found.failed == 0


@pytest.mark.parametrize("name", ["../../evil", "/tmp/pfsr-evil", "", ".hidden", "x" * 300])
def test_a_run_name_that_is_no_name_of_a_directory(log: pd.DataFrame, name: str) -> None:
    with pytest.raises(pfsr.SettingsError, match="is no name of a directory"):
        pfsr.fit(log, clients=2, silent=True, **{"run.name": name})


def test_a_run_name_may_be_used_twice(log: pd.DataFrame) -> None:
    options = {**SETTINGS, "clients": 2, "rounds": 1, "baselines": False, "silent": True}
    one, two = (pfsr.fit(log, **{**options, "run.name": "mine"}) for _ in range(2))
    assert one.directory.name == two.directory.name == "mine"
    assert one.directory != two.directory


@pytest.fixture
def numbered(tmp_path: Path) -> pfsr.Model:
    frame = pd.DataFrame(
        [(user, 100 + user % 2 + item, item) for user in range(6) for item in range(4 + user % 3)],
        columns=["user", "item", "time"],
    )
    options = {**SETTINGS, "rounds": 1, "baselines": False, "silent": True}
    return pfsr.fit(frame, clients=2, **options)


def test_ids_that_are_numbers(numbered: pfsr.Model) -> None:
    expected = numbered.recommend("0")
    for user in (0, np.int64(0), np.uint8(0), np.str_("0"), 0.0, np.array(0)):
        pd.testing.assert_frame_equal(numbered.recommend(user), expected)
    expected = numbered.recommend(["100", "101"], 2)
    for history in (np.array([100, 101]), pd.Series([100, 101]), (100, np.int64(101))):
        pd.testing.assert_frame_equal(numbered.recommend(history, np.int64(2)), expected)
    pd.testing.assert_frame_equal(numbered.recommend([100, 101], 2.0), expected)
    client = numbered._served.clients[numbered.client_of(0)]
    assert len(client.histories["0"]) == 4
    numbered.add(np.int64(0), "105")
    numbered.add(0, [np.int64(104)], 1e9)
    assert not {"104", "105"} & set(numbered.recommend(0, k=99)["item"])


@pytest.mark.parametrize(
    "value", [None, 1.5, float("nan"), True, b"0", pd.Timestamp(0), ["a", None], {"a": 1}, {"a"}]
)
def test_ids_of_other_types(model: pfsr.Model, value) -> None:
    with pytest.raises(pfsr.RecommendationError, match="Fix: give "):
        model.recommend(value)
    with pytest.raises(pfsr.RecommendationError, match="Fix: give "):
        model.add(model.users[0], value)


@pytest.mark.parametrize("k", [2.5, float("inf"), "3", None, True, [3]])
def test_a_k_that_is_no_whole_number(model: pfsr.Model, k) -> None:
    with pytest.raises(pfsr.RecommendationError, match="^k = .* Fix: give a whole number"):
        model.recommend(model.users[0], k=k)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "3", True, 1e300])
def test_a_time_that_is_none(model: pfsr.Model, seconds) -> None:
    with pytest.raises(pfsr.RecommendationError, match="^time_seconds = .* Fix: give seconds"):
        model.add(model.users[0], model.items[0], seconds)


def test_a_client_that_is_no_text(model: pfsr.Model) -> None:
    with pytest.raises(pfsr.RecommendationError, match="^client = .* Fix: choose"):
        model.recommend(model.users[0], client=["shop-lima"])


def test_clients_of_one_user_need_items_that_they_share(log: pd.DataFrame) -> None:
    for clients in ("user", 24, "alone"):
        with pytest.raises(pfsr.SettingsError, match="single user.* Fix: items='dual'"):
            pfsr.fit(log.assign(alone=log["user"]), clients=clients, silent=True)


def test_damaged_files_of_a_saved_model(model: pfsr.Model, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    results = tmp_path / "m" / "clients.csv"
    text = results.read_text("utf-8")
    results.write_text(text.replace("shop-lima", "shop-rome"), "utf-8")
    with pytest.raises(pfsr.ModelFilesError, match=r"clients.csv is not the file that was saved"):
        pfsr.load(tmp_path / "m").evaluate()
    facts = tmp_path / "m" / "model" / "model.json"
    facts.write_text(facts.read_text("utf-8").replace("results_digest", "old"), "utf-8")
    for damaged in (text[: len(text) // 2], "", "\0\1garbled\n,,,,\n", text + "pfsr,x\n"):
        results.write_text(damaged, "utf-8")
        with pytest.raises(pfsr.ModelFilesError, match=r"clients.csv is damaged"):
            pfsr.load(tmp_path / "m").evaluate()
    store = tmp_path / "m" / "model" / "node.sqlite"
    content = store.read_bytes()
    for wrong in (b"no database", content[: len(content) // 2], b""):
        store.write_bytes(wrong)
        with pytest.raises(pfsr.ModelFilesError, match=r"node.sqlite.* Fix: "):
            found = pfsr.load(tmp_path / "m")
            found.recommend(found.users[-1])


def test_a_column_of_long_values_was_left_out(log: pd.DataFrame) -> None:
    with pytest.raises(pfsr.DataError, match="'note' was left out.* longer than 256 characters"):
        pfsr.fit(log.assign(note="x" * 300), clients="note", silent=True)


@pytest.mark.parametrize(
    ("data", "options", "problem"),
    [
        (None, {"source": "ml-100k"}, "data.source = 'ml-100k', but the data are a DataFrame"),
        (None, {"path": "log.csv"}, "data.path = 'log.csv', but the data are a DataFrame"),
        ("a.csv", {"path": "b.csv"}, "data.path = 'b.csv', but the data are 'a.csv'"),
        ("synthetic", {"source": "ml-1m"}, "data.source = 'ml-1m', but the data are 'synthetic'"),
        (None, {"clients": 2, "partition": "user"}, "partition = 'user' contradicts clients = 2"),
        (None, {"clients": 2, "column": "shop"}, "column = 'shop' contradicts clients = 2"),
        (None, {"clients": "shop", "federation": {"clients": 3}}, "clients = 3 contradicts"),
        (None, {"clients": [1]}, r"clients = \[1\]. Fix: give the name of a column"),
        (None, {"clients": float("nan")}, "clients = nan. Fix"),
        (None, {"clients": True}, "clients = True. Fix"),
        (None, {"clients": 2.7}, "clients = 2.7. Fix"),
        (None, {"clients": b"shop"}, "clients = b'shop'. Fix"),
        (None, {"clients": ""}, "clients = ''. Fix"),
        (None, {"clients": np.array([1, 2])}, "clients = array.* Fix"),
        (None, {"rounds": np.array([1, 2])}, "rounds is a ndarray. Fix"),
        (None, {"train": {1: 3}}, "in train, the setting 1 is a int. Fix"),
        (None, {"recipe": None}, "recipe = None. Fix"),
        (None, {"recipe": "a\0b"}, "recipe = .* Fix"),
        (None, {"recipe": "x" * 300}, "recipe.* Fix"),
    ],
)
def test_arguments_that_do_not_fit(log: pd.DataFrame, data, options, problem: str) -> None:
    with pytest.raises(pfsr.SettingsError, match=problem):
        pfsr.fit(log if data is None else data, silent=True, **options)


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, ""])
def test_data_of_a_wrong_path(path: str) -> None:
    with pytest.raises(pfsr.DataError):
        pfsr.fit(path, clients=2, silent=True)


def test_clients_that_mean_something_else(log: pd.DataFrame) -> None:
    with pytest.raises(pfsr.DataError, match="Fix: clients=20 for so many"):
        pfsr.fit(log, clients="20", silent=True)
    with pytest.raises(pfsr.DataError, match="Fix: clients='user' for a client a user"):
        pfsr.fit(log.rename(columns={"user": "user_id"}), clients="user_id", silent=True)


def test_places_where_no_model_is_saved(model: pfsr.Model, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    wrong_places = [tmp_path / "file" / "m", "/proc/m", tmp_path / ("x" * 300), "a\0b", None, ""]
    for place in [*wrong_places, tmp_path / "link", 3]:
        with pytest.raises(pfsr.ModelFilesError, match="Fix: "):
            model.save(place)
    for place in wrong_places:
        with pytest.raises(pfsr.ModelFilesError, match="Fix: "):
            pfsr.load(place)
    for place in (model.directory / "x", model.directory.parent / "x"):
        with pytest.raises(pfsr.ModelFilesError, match="would be deleted with the model"):
            model.save(place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_imports_leave_the_random_state() -> None:
    code = (
        "import random; random.seed(1); state = random.getstate(); import pfsr; pfsr.fit;"
        "from pfsr_core.items.text_vectors import tf_idf; import warnings;"
        "filters = list(warnings.filters); tf_idf(['a b', 'b c', 'a c'], 2);"
        "print(random.getstate() == state, warnings.filters == filters)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_equal_titles_raise_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = tf_idf(["same title"] * 5, 4)
    assert rows[:, 0] == pytest.approx([1.0] * 5) and not rows[:, 1:].any()
