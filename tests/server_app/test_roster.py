"""Who forms a federation, and what is said when they cannot."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from pfsr_core.assembly.settings import flat_settings
from server_app.membership import gather, join, newly_refused
from server_app.roster import FederationError, Roster, check
from tests.helpers.tiny import tiny_settings
from tests.integration.loopback import LoopbackGrid, partitions

HELLO = {"run": "run", "warm-start": ""}


def grid_of(tmp_path, configs, **options):
    return LoopbackGrid(flat_settings(tiny_settings()), configs, **options)


def roster_of(tmp_path, configs, **options) -> Roster:
    return gather(grid_of(tmp_path, configs), HELLO, timeout=20, **options)


def test_the_roster_is_in_the_order_of_partitions_whatever_the_ids_are(tmp_path):
    roster = roster_of(tmp_path, partitions(3, tmp_path))
    assert [member.partition for member in roster.members] == [0, 1, 2]
    assert [member.node for member in roster.members] == [900, 893, 886]
    assert roster.clients == tuple(f"group-0{i}" for i in range(6))
    assert roster.users == 24
    assert 0 < roster.coverage("valid") <= 1


def test_it_waits_for_nodes_that_come_late(tmp_path):
    calls = 0

    class Late(LoopbackGrid):
        def get_node_ids(self):
            nonlocal calls
            calls += 1
            return super().get_node_ids()[: calls // 2]

    grid = Late(flat_settings(tiny_settings()), partitions(2, tmp_path))
    assert len(gather(grid, HELLO, timeout=20).members) == 2
    assert calls >= 4


def test_nodes_that_never_come_are_counted(tmp_path):
    grid = grid_of(tmp_path, partitions(3, tmp_path), connected=lambda p: p < 2)
    with pytest.raises(FederationError, match=r"2 of 3 nodes.*start-timeout is 0.5 s"):
        gather(grid, HELLO, timeout=0.5)


def test_a_node_that_cannot_read_its_data_says_so_at_once(tmp_path):
    configs = partitions(2, tmp_path)
    configs[1] = {"partition-id": 1, "data-path": "users=many", "state-dir": str(tmp_path)}
    with pytest.raises(FederationError, match="DataError; what it says is in the node's log"):
        gather(grid_of(tmp_path, configs), HELLO, timeout=30, settle=0.2)


def owners(tmp_path, *names, **more):
    """Nodes with data of their own, whose users are named alike."""
    return [
        {
            "name": name,
            "data-path": f"users={12 + seed},items=30,seed={seed},mean_length=9",
            "state-dir": str(tmp_path),
            **more,
        }
        for seed, name in enumerate(names)
    ]


def test_owners_of_data_name_their_clients_after_themselves(tmp_path):
    roster = roster_of(tmp_path, owners(tmp_path, "oslo", "bern", clients=2), settle=0.3)
    assert [member.label for member in roster.members] == ["bern", "oslo"]
    assert roster.clients == ("bern/group-00", "bern/group-01", "oslo/group-00", "oslo/group-01")
    assert roster.users == 12 + 13


def test_of_two_nodes_of_one_name_the_second_is_refused(tmp_path):
    roster = roster_of(tmp_path, owners(tmp_path, "oslo", "oslo"), settle=0.3)
    assert [member.node for member in roster.members] == [900]
    assert roster.refused[893].reason == "another node calls itself oslo too"
    with pytest.raises(FederationError, match="node 893: another node calls itself oslo too"):
        roster_of(tmp_path, owners(tmp_path, "oslo", "oslo"), settle=0.3, min_nodes=2)


def test_two_nodes_with_clients_of_the_same_name_are_refused(tmp_path):
    one, other = members(tmp_path)
    with pytest.raises(FederationError, match="live on more than one node"):
        check(Roster((one, replace(other, clients=one.clients))))


@pytest.mark.parametrize(
    ("config", "words"),
    [({"name": ""}, "needs a name"), ({"name": "a/b"}, "name 'a/b': use at most 64")],
)
def test_a_name_that_cannot_be_used_is_an_error(tmp_path, config, words):
    with pytest.raises(FederationError, match=words):
        roster_of(tmp_path, owners(tmp_path, "oslo", **config), settle=0.3)


def test_min_nodes_starts_before_all_parts_are_there_and_the_rest_joins_later(tmp_path):
    here = {0, 1}
    grid = grid_of(tmp_path, partitions(3, tmp_path), connected=lambda p: p in here)
    roster = gather(grid, HELLO, timeout=20, min_nodes=2, settle=0.3)
    assert [member.partition for member in roster.members] == [0, 1]
    here.add(2)
    later = join(grid, roster, HELLO)
    assert [member.partition for member in later.members] == [0, 1, 2]
    assert later.members[:2] == roster.members, "nobody was asked twice"


def test_fewer_than_min_nodes_end_after_the_wait(tmp_path):
    grid = grid_of(tmp_path, owners(tmp_path, "oslo"))
    with pytest.raises(FederationError, match=r"1 of 2 nodes are ready .*start-timeout is 0.5 s"):
        gather(grid, HELLO, timeout=0.5, min_nodes=2, settle=0.1)


def test_a_silent_node_holds_nobody_up_and_joins_when_it_answers(tmp_path):
    grid = grid_of(tmp_path, partitions(2, tmp_path))
    late = {}

    def silent(partition, request, reply):
        if partition == 0:
            return reply
        late[request.metadata.message_id] = reply
        return None

    grid.tamper = silent
    roster = join(grid, Roster(()), HELLO, patience=0.1)
    assert [member.partition for member in roster.members] == [0]
    assert list(roster.greeted.values()) == [893]
    again = join(grid, roster, HELLO)
    assert again.greeted == roster.greeted, "it is not asked a second time"
    grid.replies |= late
    assert [m.partition for m in join(grid, again, HELLO).members] == [0, 1]


def test_a_node_under_a_new_id_takes_its_old_place(tmp_path):
    grid = grid_of(tmp_path, partitions(2, tmp_path))
    roster = join(grid, Roster(()), HELLO)
    grid.ids[77] = grid.ids[893]  # the old id is not forgotten yet
    after = join(grid, roster, HELLO)
    assert [member.node for member in after.members] == [900, 77]
    assert newly_refused(roster, after) == {893: "node 77 calls itself 1 now"}
    assert join(grid, after, HELLO).members == after.members, "the old id is left alone"


def members(tmp_path):
    return roster_of(tmp_path, partitions(2, tmp_path)).members


@pytest.mark.parametrize("field", ["split_digest", "items_digest"])
def test_nodes_that_read_other_data_are_refused(tmp_path, field):
    one, other = members(tmp_path)
    with pytest.raises(FederationError, match=r"do not read the same data"):
        check(Roster((one, replace(other, **{field: "f" * 64}))))


def test_two_catalogues_cannot_share_one_table(tmp_path):
    one, other = members(tmp_path)
    with pytest.raises(FederationError, match="model.items = 'shared'"):
        check(Roster((replace(one, item_ids=("a",)), replace(other, item_ids=("b",)))))


def test_no_clients_at_all_is_an_error(tmp_path):
    one, other = members(tmp_path)
    empty = Roster((replace(one, clients={}), replace(other, clients={})))
    with pytest.raises(FederationError, match="no node hosts a client"):
        check(empty)


def test_a_settled_federation_needs_no_number(tmp_path):
    roster = roster_of(tmp_path, owners(tmp_path, "oslo"), settle=0.2)
    assert (roster.members[0].partitions, len(roster.clients)) == (0, 6)
    assert roster.users < inf


def semantic(tmp_path, vectors: str) -> Roster:
    """Two owners of different catalogues under items = semantic."""
    settings = tiny_settings(model__items="semantic", model__item_vectors=vectors)
    grid = LoopbackGrid(flat_settings(settings), owners(tmp_path, "berlin", "paris"))
    return gather(grid, HELLO, timeout=20, settle=0.2)


def test_owners_of_other_items_agree_on_how_vectors_are_made(tmp_path):
    roster = semantic(tmp_path, "hashed")
    assert {member.vectors for member in roster.members} == {"hashed, 64"}
    assert not any(member.item_ids for member in roster.members)
    with pytest.raises(FederationError, match=r"fitted to a catalogue.*item-vectors = 'hashed'"):
        semantic(tmp_path, "tf-idf")


def test_nodes_with_other_item_vectors_do_not_train_one_projection(tmp_path):
    settings = tiny_settings(model__items="semantic")
    grid = LoopbackGrid(flat_settings(settings), partitions(2, tmp_path))
    roster = gather(grid, HELLO, timeout=20)
    assert len({member.vectors for member in roster.members}) == 1
    other = replace(roster.members[1], vectors="0" * 64)
    with pytest.raises(FederationError, match=r"different item vectors \(node 0: .*, node 1: 0"):
        check(replace(roster, members=(roster.members[0], other)))


def test_a_dual_table_needs_one_catalogue(tmp_path):
    settings = tiny_settings(model__items="dual")
    grid = LoopbackGrid(flat_settings(settings), owners(tmp_path, "berlin", "paris"))
    with pytest.raises(FederationError, match=r"'shared' and 'dual' average one table"):
        gather(grid, HELLO, timeout=20, settle=0.2)
