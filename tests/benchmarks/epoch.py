"""Processor seconds of rounds of the default recipe's model, by any version of this project.

    PYTHONPATH=CHECKOUT python tests/benchmarks/epoch.py --clients 20

FedAvg on ML-100K: a round is an epoch over all its interactions. CHECKOUT is a clone of the version
that is measured; run two of them in turn and compare. One client has everything, with one table.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.data import load_federation
from pfsr_core.assembly.settings import parse_settings
from pfsr_core.federated import simulation
from pfsr_core.settings.recipes import load_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "pfsr.toml"


def seconds_and_losses(clients: int, rounds: int) -> tuple[list[float], list[float]]:
    """Processor seconds of each round, and its mean training loss."""
    settings = parse_settings(
        {
            **load_recipe(RECIPE),
            "run.compare": "",
            "algorithm.name": "fed-avg",
            "federation.clients": clients,
            **({"model.items": "shared", "model.item-start": "common"} if clients == 1 else {}),
        }
    )
    federation = load_federation(settings)
    catalogue: Any = getattr(federation, "catalogue", federation.split.item_ids)  # as it was named
    algorithm = assemble(settings, catalogue).algorithm
    ends, losses = [time.process_time()], []

    def look(report: simulation.RoundReport) -> None:
        ends.append(time.process_time())
        metrics = report.reply.metrics
        losses.append(metrics["train-loss"] / metrics["train-targets"])

    simulation.run(algorithm, federation.clients, rounds=rounds, seed=0, on_round=look)
    return [end - start for start, end in zip(ends, ends[1:], strict=False)], losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds, losses = seconds_and_losses(options.clients, options.rounds)
    line = {"best": min(seconds), "seconds": seconds, "losses": losses}
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
