"""A saved model: recommends as the one in memory does, and a damaged directory says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pfsr_core.data.vocabulary import load_vocabulary
from pfsr_core.runs.model_files import (
    MODEL_DIRECTORY,
    ModelFilesError,
    load_model,
    model_clients,
    save_model,
)
from pfsr_core.serving.recommend import recommend
from pfsr_core.serving.served_model import Served
from pfsr_core.serving.store_files import find_served
from tests.helpers.runs import write_run
from tests.helpers.serving import served_after_two_rounds
from tests.helpers.tiny import tiny_world


@pytest.fixture(scope="module")
def served() -> Served:
    return served_after_two_rounds(*tiny_world())


@pytest.fixture(scope="module")
def saved(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_model(directory, served)
    return directory


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def users_of(served: Served) -> list[str]:
    return [user for client in served.clients.values() for user in client.histories]


def test_it_recommends_as_the_model_in_memory(served: Served, saved: Path) -> None:
    loaded = load_model(saved)
    assert loaded.origin == served.origin
    assert loaded.items == served.items
    for user in users_of(served)[:4]:
        assert recommend(loaded, user, k=5) == recommend(served, user, k=5)
        assert recommend(find_served(saved, user), user, k=5) == recommend(served, user, k=5)


def test_its_clients_have_the_data_of_training(saved: Path) -> None:
    federation = tiny_world()[1]
    for data, original in zip(model_clients(load_model(saved)), federation.clients, strict=True):
        assert data.client == original.client
        assert [user.user for user in data.users] == [user.user for user in original.users]
        for user, other in zip(data.users, original.users, strict=True):
            assert user.all_items.tolist() == other.all_items.tolist()


def test_what_is_beside_the_store_holds_no_private_parameter(served: Served, saved: Path) -> None:
    from safetensors.torch import load_file

    shared = load_file(saved / "shared.safetensors")
    assert shared.keys() == served.shared.keys()
    assert all(torch.equal(shared[name], served.shared[name]) for name in shared)
    assert load_vocabulary(saved).item_ids == tuple(served.items.ids)
    text = (saved / "model.json").read_text("utf-8")
    assert not any(f'"{user}"' in text for user in users_of(served))
    assert (saved / "node.sqlite").stat().st_mode & 0o077 == 0


def test_saving_replaces_a_model_and_nothing_else(
    served: Served, model: Path, tmp_path: Path
) -> None:
    save_model(model, load_model(model))
    assert recommend(load_model(model), users_of(served)[0]) == recommend(
        served, users_of(served)[0]
    )
    other = tmp_path / "documents"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(ModelFilesError, match=r"holds no model.*Fix: "):
        save_model(other, served)
    assert [path.name for path in other.iterdir()] == ["letter.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["documents", "model"]


def test_a_failed_save_leaves_the_old_model(
    served: Served, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_given: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("pfsr_core.runs.model_files.write_json", stop)
    with pytest.raises(OSError, match="disk full"):
        save_model(model, served)
    assert load_model(model).origin == served.origin
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["shared.safetensors", "vocabulary.json", "node.sqlite"])
def test_a_missing_file_is_named(model: Path, name: str) -> None:
    (model / name).unlink()
    with pytest.raises(ModelFilesError, match=rf"damaged model: {name} is missing.*Fix: "):
        load_model(model)


@pytest.mark.parametrize("name", ["shared.safetensors", "vocabulary.json"])
def test_a_changed_file_is_named(model: Path, name: str) -> None:
    content = bytearray((model / name).read_bytes())
    content[-3] ^= 1
    (model / name).write_bytes(bytes(content))
    with pytest.raises(ModelFilesError, match=rf"{name} is not the file that was saved"):
        load_model(model)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 1}'])
def test_a_broken_description_is_named(model: Path, content: str) -> None:
    (model / "model.json").write_text(content)
    with pytest.raises(ModelFilesError, match=r"model\.json.*Fix: "):
        load_model(model)


def test_another_format_is_refused(model: Path) -> None:
    facts = json.loads((model / "model.json").read_text("utf-8"))
    (model / "model.json").write_text(json.dumps({**facts, "format": 99}))
    with pytest.raises(ModelFilesError, match=r"model format 99, this version reads format 1"):
        load_model(model)


def test_a_damaged_or_foreign_store_is_refused(model: Path) -> None:
    facts = json.loads((model / "model.json").read_text("utf-8"))
    for changed in ({"run": "other"}, {"fingerprint": "other"}):
        (model / "model.json").write_text(json.dumps({**facts, **changed}))
        with pytest.raises(ModelFilesError, match=r"node\.sqlite holds"):
            load_model(model)
    (model / "model.json").write_text(json.dumps(facts))
    (model / "node.sqlite").write_bytes(b"no database at all")
    with pytest.raises(ModelFilesError, match=r"damaged model: node\.sqlite"):
        load_model(model)


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match=r"holds no saved model.*Fix: "):
        load_model(tmp_path)


def test_a_run_without_a_network_ends_with_its_model(tmp_path: Path) -> None:
    write_run(tmp_path / "run", run__compare="", run__baselines=False)
    served = load_model(tmp_path / "run" / MODEL_DIRECTORY)
    assert (served.origin.run, served.origin.round) == ("run", 3)
    answer = recommend(served, users_of(served)[0], k=3)
    assert len(answer.recommendations) == 3
