"""What the fault tests have in common: recipe, figures, checksums, replays."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.data import load_federation
from pfsr_core.assembly.settings import parse_settings
from pfsr_core.federated.aggregation import merge_replies
from pfsr_core.federated.algorithm import ServerState
from pfsr_core.federated.simulation import hosted_by, node_update
from pfsr_core.settings.fields import Value
from tests.deployment.federation import Run
from tests.helpers.tiny import TINY

QUICK: dict[str, Value] = {**TINY, "run.baselines": False, "algorithm.finetune": False}
"""The tiny recipe without what takes time and is tested elsewhere."""

SLOWNESS = float(os.environ.get("PFSR_SLOWNESS", "1"))
"""Of this machine. It stretches the deadlines of rounds, never what a test allows beyond them."""


def figure(name: str, **values: Any) -> None:
    """Adds a line to the file that PFSR_FIGURES names, if it names one."""
    path = os.environ.get("PFSR_FIGURES")
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"figure": name, **values}) + "\n")


def rows(store: Path) -> dict[tuple[str, str, str, int], str]:
    """SHA-256 of every private state as committed, by (run, algorithm, client, round)."""
    query = "SELECT run, algorithm, client, round, tensors FROM states"
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as file:
        found = {tuple(key): hashlib.sha256(blob).hexdigest() for *key, blob in file.execute(query)}
    file.close()
    return found


def replay(config: Mapping[str, Value], nodes: int, run: Run) -> ServerState:
    """The plain loop with the answers missing that the run's lines name as dropped.

    A node whose answer was dropped continues from its clients' last aggregated states.
    """
    settings = parse_settings(config)
    federation = load_federation(settings)
    algorithm = assemble(settings, federation.split.item_ids).algorithm
    clients = sorted(federation.clients, key=lambda data: data.client)
    server, states = algorithm.server.init(), {}
    for line in run.lines():
        if line["round"] == 0:
            continue
        missing = {drop["node"] for drop in line["dropped"]}
        replies = []
        for node in sorted(set(range(nodes)) - missing):
            here = hosted_by(clients, node, nodes)
            reply, new = node_update(algorithm, server.broadcast(), states, here)
            states |= new
            replies.append(reply)
        server = algorithm.server.update(server, merge_replies(replies))
    return server
