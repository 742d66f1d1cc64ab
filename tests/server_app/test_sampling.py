"""Who forms a federation, and what is said when they cannot."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from pfsr_core.settings import flat_settings
from server_app.sampling import FederationError, Roster, check, gather
from tests.integration.loopback import LoopbackGrid, partitions
from tests.tiny import tiny_settings

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


def test_a_node_that_cannot_read_its_data_says_why_at_once(tmp_path):
    configs = partitions(2, tmp_path)
    configs[1] = {"partition-id": 1, "data-path": "users=many", "state-dir": str(tmp_path)}
    with pytest.raises(FederationError, match="users=many"):
        gather(grid_of(tmp_path, configs), HELLO, timeout=30, settle=0.2)


def test_two_nodes_with_clients_of_the_same_name_are_refused(tmp_path):
    configs = [
        {
            "partition-id": p,
            "data-path": f"users={12 + p},items=30,seed={p},mean_length=9",
            "state-dir": str(tmp_path),
        }
        for p in (0, 1)
    ]
    settings = tiny_settings(federation__partition="user")
    grid = LoopbackGrid(
        flat_settings(settings), [{**c, "state-dir": str(tmp_path)} for c in configs]
    )
    with pytest.raises(FederationError, match="live on more than one node"):
        gather(grid, HELLO, timeout=20, settle=0.3)  # both worlds name their users alike


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
    config = {"data-path": "users=12,items=30,seed=9,mean_length=9", "state-dir": str(tmp_path)}
    roster = roster_of(tmp_path, [config], settle=0.2)
    assert (roster.members[0].partitions, len(roster.clients)) == (0, 6)
    assert roster.users < inf
