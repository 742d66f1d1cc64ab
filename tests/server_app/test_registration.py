"""Which nodes fit together, and what is said when they do not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pfsr_core.assembly.settings import flat_settings
from server_app.membership import gather_nodes
from server_app.registration import check_same_data
from server_app.roster import FederationError, Roster
from tests.helpers.tiny import tiny_settings
from tests.integration.loopback import LoopbackGrid, partitions
from tests.server_app.nodes import REGISTRATION, members, owners


def test_two_nodes_with_clients_of_the_same_name_are_refused(tmp_path):
    one, other = members(tmp_path)
    with pytest.raises(FederationError, match="are hosted by more than one node"):
        check_same_data(Roster((one, replace(other, clients=one.clients))))


@pytest.mark.parametrize("field", ["split_digest", "items_digest"])
def test_nodes_that_read_other_data_are_refused(tmp_path, field):
    one, other = members(tmp_path)
    with pytest.raises(FederationError, match=r"do not read the same data"):
        check_same_data(Roster((one, replace(other, **{field: "f" * 64}))))


def test_two_catalogues_cannot_share_one_table(tmp_path):
    one, other = members(tmp_path)
    with pytest.raises(FederationError, match="model.items = 'shared'"):
        check_same_data(Roster((replace(one, item_ids=("a",)), replace(other, item_ids=("b",)))))


def test_no_clients_at_all_is_an_error(tmp_path):
    one, other = members(tmp_path)
    empty = Roster((replace(one, clients={}), replace(other, clients={})))
    with pytest.raises(FederationError, match="no node hosts a client"):
        check_same_data(empty)


def semantic(tmp_path, vectors: str) -> Roster:
    """Two owners of different catalogues under items = semantic."""
    settings = tiny_settings(model__items="semantic", model__item_vectors=vectors)
    grid = LoopbackGrid(flat_settings(settings), owners(tmp_path, "berlin", "paris"))
    return gather_nodes(grid, REGISTRATION, start_timeout=20, settle_seconds=0.2)


def test_owners_of_other_items_agree_on_how_vectors_are_made(tmp_path):
    roster = semantic(tmp_path, "hashed")
    assert {member.vectors for member in roster.members} == {"hashed, 64"}
    assert not any(member.item_ids for member in roster.members)
    with pytest.raises(FederationError, match=r"fitted to a catalogue.*item-vectors = 'hashed'"):
        semantic(tmp_path, "tf-idf")


def test_nodes_with_other_item_vectors_do_not_train_one_projection(tmp_path):
    settings = tiny_settings(model__items="semantic")
    grid = LoopbackGrid(flat_settings(settings), partitions(2, tmp_path))
    roster = gather_nodes(grid, REGISTRATION, start_timeout=20)
    assert len({member.vectors for member in roster.members}) == 1
    other = replace(roster.members[1], vectors="0" * 64)
    with pytest.raises(FederationError, match=r"different item vectors \(node 0: .*, node 1: 0"):
        check_same_data(replace(roster, members=(roster.members[0], other)))


def test_a_dual_table_needs_one_catalogue(tmp_path):
    settings = tiny_settings(model__items="dual")
    grid = LoopbackGrid(flat_settings(settings), owners(tmp_path, "berlin", "paris"))
    with pytest.raises(FederationError, match=r"'shared' and 'dual' average one table"):
        gather_nodes(grid, REGISTRATION, start_timeout=20, settle_seconds=0.2)
