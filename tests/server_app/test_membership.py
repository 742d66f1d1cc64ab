"""Who becomes a member, and what is said when a federation does not become complete."""

from __future__ import annotations

from math import inf

import pytest

from pfsr_core.assembly.settings import flat_settings
from server_app.membership import admit_nodes, gather_nodes, newly_refused
from server_app.roster import FederationError, Roster
from tests.helpers.tiny import tiny_settings
from tests.integration.loopback import LoopbackGrid, partitions
from tests.server_app.nodes import REGISTRATION, grid_of, owners, roster_of


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
    assert len(gather_nodes(grid, REGISTRATION, start_timeout=20).members) == 2
    assert calls >= 4


def test_nodes_that_never_come_are_counted(tmp_path):
    grid = grid_of(tmp_path, partitions(3, tmp_path), connected=lambda p: p < 2)
    with pytest.raises(FederationError, match=r"2 of 3 nodes.*start-timeout is 0.5 s"):
        gather_nodes(grid, REGISTRATION, start_timeout=0.5)


def test_a_node_that_cannot_read_its_data_says_so_at_once(tmp_path):
    configs = partitions(2, tmp_path)
    configs[1] = {"partition-id": 1, "data-path": "users=many", "state-dir": str(tmp_path)}
    with pytest.raises(FederationError, match="DataError; what it says is in the node's log"):
        gather_nodes(grid_of(tmp_path, configs), REGISTRATION, start_timeout=30, settle_seconds=0.2)


def test_owners_of_data_name_their_clients_after_themselves(tmp_path):
    roster = roster_of(tmp_path, owners(tmp_path, "oslo", "bern", clients=2), settle_seconds=0.3)
    assert [member.label for member in roster.members] == ["bern", "oslo"]
    assert roster.clients == ("bern/group-00", "bern/group-01", "oslo/group-00", "oslo/group-01")
    assert roster.users == 12 + 13


def test_of_two_nodes_of_one_name_the_second_is_refused(tmp_path):
    roster = roster_of(tmp_path, owners(tmp_path, "oslo", "oslo"), settle_seconds=0.3)
    assert [member.node for member in roster.members] == [900]
    assert roster.refused[893].reason == "another node calls itself oslo too"
    with pytest.raises(FederationError, match="node 893: another node calls itself oslo too"):
        roster_of(tmp_path, owners(tmp_path, "oslo", "oslo"), settle_seconds=0.3, min_nodes=2)


@pytest.mark.parametrize(
    ("config", "words"),
    [({"name": ""}, "needs a name"), ({"name": "a/b"}, "name 'a/b': use at most 64")],
)
def test_a_name_that_cannot_be_used_is_an_error(tmp_path, config, words):
    with pytest.raises(FederationError, match=words):
        roster_of(tmp_path, owners(tmp_path, "oslo", **config), settle_seconds=0.3)


def test_min_nodes_starts_before_all_parts_are_there_and_the_rest_joins_later(tmp_path):
    here = {0, 1}
    grid = grid_of(tmp_path, partitions(3, tmp_path), connected=lambda p: p in here)
    roster = gather_nodes(grid, REGISTRATION, start_timeout=20, min_nodes=2, settle_seconds=0.3)
    assert [member.partition for member in roster.members] == [0, 1]
    here.add(2)
    later = admit_nodes(grid, roster, REGISTRATION)
    assert [member.partition for member in later.members] == [0, 1, 2]
    assert later.members[:2] == roster.members, "nobody was asked twice"


def test_fewer_than_min_nodes_end_after_the_wait(tmp_path):
    grid = grid_of(tmp_path, owners(tmp_path, "oslo"))
    with pytest.raises(FederationError, match=r"1 of 2 nodes are ready .*start-timeout is 0.5 s"):
        gather_nodes(grid, REGISTRATION, start_timeout=0.5, min_nodes=2, settle_seconds=0.1)


def test_a_silent_node_holds_nobody_up_and_joins_when_it_answers(tmp_path):
    grid = grid_of(tmp_path, partitions(2, tmp_path))
    late = {}

    def silent(partition, request, reply):
        if partition == 0:
            return reply
        late[request.metadata.message_id] = reply
        return None

    grid.tamper = silent
    roster = admit_nodes(grid, Roster(()), REGISTRATION, patience_seconds=0.1)
    assert [member.partition for member in roster.members] == [0]
    assert list(roster.awaiting.values()) == [893]
    again = admit_nodes(grid, roster, REGISTRATION)
    assert again.awaiting == roster.awaiting, "it is not asked a second time"
    grid.replies |= late
    assert [m.partition for m in admit_nodes(grid, again, REGISTRATION).members] == [0, 1]


def test_a_node_under_a_new_id_takes_its_old_place(tmp_path):
    grid = grid_of(tmp_path, partitions(2, tmp_path))
    roster = admit_nodes(grid, Roster(()), REGISTRATION)
    grid.ids[77] = grid.ids[893]  # the old id is not forgotten yet
    after = admit_nodes(grid, roster, REGISTRATION)
    assert [member.node for member in after.members] == [900, 77]
    assert newly_refused(roster, after) == {893: "node 77 calls itself 1 now"}
    assert admit_nodes(grid, after, REGISTRATION).members == after.members, (
        "the old id is left alone"
    )


def test_a_settled_federation_needs_no_number(tmp_path):
    roster = roster_of(tmp_path, owners(tmp_path, "oslo"), settle_seconds=0.2)
    assert (roster.members[0].partitions, len(roster.clients)) == (0, 6)
    assert roster.users < inf
