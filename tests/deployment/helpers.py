"""What the fault tests have in common: recipe, bundles with faults, figures, checksums."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfsr_core.assembly import assemble, load_federation
from pfsr_core.federated import ServerState, merge_replies
from pfsr_core.settings import Value, parse_settings
from pfsr_core.simulation import hosted_by, node_update
from server_app import launch
from tests.deployment.federation import Run
from tests.tiny import TINY

QUICK: dict[str, Value] = {**TINY, "run.baselines": False, "algorithm.finetune": False}
"""The tiny recipe without what takes time and is tested elsewhere."""

BUNDLED = ("pyproject.toml", "README.md", "LICENSE", "client_app", "pfsr_core", "server_app")

FAULT = """
import json, os, time
from pathlib import Path

PLACE = Path({place!r})


def install(nodes):
    train = nodes.train

    def faulty(node, order, *rest):
        plan = json.loads((PLACE / "plan.json").read_text())
        (PLACE / f"train-{{node.partition}}-{{order.round}}").touch()
        began = time.monotonic()
        hit = node.partition in plan["nodes"] and order.round in plan["rounds"]
        if hit and plan["kind"] == "raise":
            raise RuntimeError("the sensor is unplugged")
        if hit and plan["kind"] == "exit":
            os._exit(7)
        if hit and plan["kind"] == "sleep":
            time.sleep(plan["seconds"])
        answer = train(node, order, *rest)
        if hit and plan["kind"] == "slow":
            time.sleep(9 * (time.monotonic() - began))
        return answer

    nodes.train = faulty
"""


@dataclass(frozen=True)
class Faults:
    """A copy of the app whose ``train`` does what ``plan.json`` says at that moment."""

    app: Path
    place: Path

    def plan(self, kind: str, nodes: list[int], rounds: list[int], seconds: float = 0.0) -> None:
        """``kind``: none, raise, exit, sleep (``seconds``, then train), slow (ten times)."""
        for old in self.place.glob("train-*"):
            old.unlink()
        content = {"kind": kind, "nodes": nodes, "rounds": rounds, "seconds": seconds}
        stage = self.place / "plan.stage"
        stage.write_text(json.dumps(content), "utf-8")
        stage.replace(self.place / "plan.json")

    def training(self, node: int, round_: int) -> bool:
        """Has the node begun to train in this round?"""
        return (self.place / f"train-{node}-{round_}").exists()


def make_faults(directory: Path) -> Faults:
    """The bundle, with no fault planned."""
    app, place = directory / "app", directory / "plans"
    place.mkdir(parents=True)
    app.mkdir()
    for name in (*BUNDLED, "recipes"):
        source = launch.APP / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, app / name)
    (app / "client_app" / "fault.py").write_text(FAULT.format(place=str(place)), "utf-8")
    with (app / "client_app" / "app.py").open("a", encoding="utf-8") as file:
        file.write("\n\nfrom client_app import fault\n\nfault.install(nodes)\n")
    faults = Faults(app, place)
    faults.plan("none", [], [])
    return faults


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
    server, states = algorithm.init(), {}
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
        server = algorithm.server_update(server, merge_replies(replies))
    return server
