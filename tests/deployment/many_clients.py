"""Thousands of one-user clients in a round of Flower's simulation, against a message for each.

    python -m tests.deployment.many_clients --users 6040 --samples 40 640

Synthetic users with histories as long as ML-1M's (mean 165, at least 18), the default encoder,
federated averaging, one local epoch. First all of them on two nodes; then two samples, a node and a
message for each client, in the same way. Flower's own cost of a message grows with the number of
nodes, so what all would take like that is read off the line through both samples. A last run, of
a model that hardly trains, shows that cost alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from pfsr.cli.run import run_config
from pfsr.deploy.launch import launch
from pfsr_core.settings.fields import Value

Flat = dict[str, Value]
TINY: Flat = {
    "model.embedding-dim": 4,
    "model.state-dim": 1,
    "model.num-layers": 1,
    "model.num-heads": 1,
    "model.max-length": 2,
}


@dataclass(frozen=True)
class Measured:
    """One run: seconds of its first round, which starts workers and reads the data, and of the
    median of the others; of these the part that the slower node worked."""

    clients: int
    nodes: int
    first: float
    later: float
    working: float

    @property
    def a_client(self) -> float:
        return self.later / self.clients


def measure(users: int, nodes: int, rounds: int = 3, model: Flat | None = None) -> Measured:
    """``rounds`` rounds of a run with all clients on ``nodes`` nodes of Flower's simulation."""
    with tempfile.TemporaryDirectory(prefix="pfsr-many-") as home:
        config: Flat = {
            "data.source": "synthetic",
            "data.path": f"users={users},items=3706,seed=0,mean_length=165,shortest=18",
            "federation.partition": "user",
            "federation.rounds": rounds,
            "federation.round-timeout": 3600.0,
            "algorithm.name": "fed-avg",
            "run.compare": "",
            "run.baselines": False,
            "run.evaluate-every": rounds + 1,
            "run.directory": home,
            **(model or {}),
        }
        made = launch(run_config(config), nodes)
        text = (made / "metrics.jsonl").read_text("utf-8")
    lines = [line for line in map(json.loads, text.splitlines()) if line["round"] > 0]
    return Measured(
        users,
        nodes,
        first=lines[0]["seconds"],
        later=statistics.median(line["seconds"] for line in lines[1:]),
        working=statistics.median(line["node-seconds"] for line in lines[1:]),
    )


def at_size(small: Measured, large: Measured, clients: int) -> float:
    """Seconds a client of a message for each, on the line through two sizes."""
    slope = (large.a_client - small.a_client) / (large.clients - small.clients)
    return small.a_client + slope * (clients - small.clients)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=6040)
    parser.add_argument("--samples", type=int, nargs=2, default=[40, 640])
    options = parser.parse_args(arguments)
    together = measure(options.users, 2)
    sys.stdout.write(
        f"{together.clients} clients on {together.nodes} nodes: {together.later:.1f} s a round "
        f"(the first {together.first:.1f} s), of which the slower node works "
        f"{together.working:.1f} s; {1000 * together.a_client:.2f} ms per client\n"
    )
    alone = [measure(sample, sample) for sample in options.samples]
    for one in alone:
        sys.stdout.write(
            f"a message for each of {one.clients}: {one.later:.2f} s a round, "
            f"{1000 * one.a_client:.1f} ms per client, "
            f"{one.a_client / together.a_client:.1f} times as long\n"
        )
    more = at_size(*alone, options.users)
    sys.stdout.write(
        f"on the line through both, {options.users} messages: {1000 * more:.0f} ms per client, "
        f"{more / together.a_client:.0f} times as long\n"
    )
    message = measure(options.samples[0], options.samples[0], model=TINY)
    sys.stdout.write(
        f"Flower's own cost, {message.clients} nodes and a model that hardly trains: "
        f"{1000 * message.a_client:.1f} ms per message\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
