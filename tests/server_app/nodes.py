"""A grid of nodes to register, and the roster that they make."""

from __future__ import annotations

from pfsr_core.assembly.settings import flat_settings
from server_app.membership import gather_nodes
from server_app.roster import Roster
from tests.helpers.tiny import tiny_settings
from tests.integration.loopback import LoopbackGrid, partitions

REGISTRATION = {"run": "run", "warm-start": ""}


def grid_of(tmp_path, configs, **options):
    return LoopbackGrid(flat_settings(tiny_settings()), configs, **options)


def roster_of(tmp_path, configs, **options) -> Roster:
    return gather_nodes(grid_of(tmp_path, configs), REGISTRATION, start_timeout=20, **options)


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


def members(tmp_path):
    return roster_of(tmp_path, partitions(2, tmp_path)).members
