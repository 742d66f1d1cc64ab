"""Thousands of one-user clients in a round of Flower's simulation, against a message for each.

    python -m tests.deployment.many_clients --users 6040 --sample 40

Synthetic users with histories as long as ML-1M's (mean 165, at least 18), the default encoder,
federated averaging, one local epoch. First all of them on two nodes; then a sample, a node and a
message for each, in the same way. What all would take like that is the sample's time a client
times their number, which is in its favour: Flower's own cost a message grows with the number of
nodes. A last run, of a model that hardly trains, shows that cost alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from pfsr_core.settings import Value
from pfsr_core.settings_file import toml_value
from server_app.launch import launch, resolve

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
        made = launch(resolve(None, [f"{k}={toml_value(v)}" for k, v in config.items()]), nodes)
        text = (made / "metrics.jsonl").read_text("utf-8")
    lines = [line for line in map(json.loads, text.splitlines()) if line["round"] > 0]
    return Measured(
        users,
        nodes,
        first=lines[0]["seconds"],
        later=statistics.median(line["seconds"] for line in lines[1:]),
        working=statistics.median(line["node-seconds"] for line in lines[1:]),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=6040)
    parser.add_argument("--sample", type=int, default=40)
    options = parser.parse_args(arguments)
    together = measure(options.users, 2)
    alone = measure(options.sample, options.sample)
    message = measure(options.sample, options.sample, model=TINY)
    ratio = alone.a_client / together.a_client
    sys.stdout.write(
        f"{together.clients} clients on {together.nodes} nodes: {together.later:.1f} s a round "
        f"(the first {together.first:.1f} s), of which the slower node works "
        f"{together.working:.1f} s; {1000 * together.a_client:.2f} ms a client\n"
        f"a message for each, {alone.clients} clients on as many nodes: {alone.later:.2f} s a "
        f"round, {1000 * alone.a_client:.1f} ms a client, {ratio:.1f} times as long\n"
        f"Flower's own cost, a model that hardly trains: {1000 * message.a_client:.1f} ms a "
        f"message\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
