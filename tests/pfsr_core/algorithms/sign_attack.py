"""What a reply says about a history: rows that changed, and the sign of their change.

    python -m tests.pfsr_core.algorithms.sign_attack --rounds 5 --set algorithm.max-row-change=0.5

All rows of one client move along its score function, those of its items one way and those of its
negatives the other. The attack takes the direction in which the changes lie, and of the two sides
the one with fewer rows: there are four negatives for each item. It knows the table that was sent
and the reply, nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.data import FederatedDataset, load_federation
from pfsr_core.assembly.settings import Settings, parse_settings
from pfsr_core.data.client_dataset import ItemArray
from pfsr_core.federated.algorithm import ServerState
from pfsr_core.federated.model import Assembly
from pfsr_core.federated.simulation import States, node_update, run
from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.settings.recipes import load_recipe, with_overrides


def guess(sent: Tensor, reply: Tensor) -> ItemArray:
    """Codes (n,) of the items that the attack takes for the history."""
    change = reply - sent
    moved = torch.nonzero(change.abs().sum(1) > 0)[:, 0]
    if not len(moved):
        return np.empty(0, np.int64)
    _, _, directions = torch.linalg.svd(change[moved], full_matrices=False)
    ahead = change[moved] @ directions[0] > 0
    fewer = ahead if 2 * int(ahead.sum()) <= len(moved) else ~ahead
    return moved[fewer].numpy()


def precision_recall(guessed: ItemArray, truth: ItemArray) -> tuple[float, float]:
    hits = len(np.intersect1d(guessed, truth))
    return hits / max(1, len(guessed)), hits / max(1, len(truth))


def attack(
    assembly: Assembly,
    federation: FederatedDataset,
    trained: tuple[ServerState, States],
    together: int,
) -> Iterator[tuple[float, float]]:
    """Precision and recall for every client, when the server sees the mean of ``together``."""
    server, states = trained
    clients, sent = federation.clients, server.params[ITEMS]
    for start in range(0, len(clients) - together + 1, together):
        group = clients[start : start + together]
        reply, _ = node_update(assembly.algorithm, server.broadcast(), states, group)
        guessed = guess(sent, reply.params[ITEMS])
        for data in group:
            yield precision_recall(guessed, data.touched)


def measured(settings: Settings, rounds: int, together: Sequence[int]) -> Iterator[str]:
    """A line for each number of clients whose sum is seen, after ``rounds`` rounds of training."""
    federation = load_federation(settings)
    assembly = assemble(settings, federation.split.item_ids)
    trained = run(assembly.algorithm, federation.clients, rounds=rounds, seed=settings.run.seed)
    for count in together:
        found = np.array(list(attack(assembly, federation, trained, count)))
        precision, recall = found.mean(0)
        yield f"{count} together: precision {precision:.3f}, recall {recall:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--together", type=int, nargs="+", default=[1, 2, 5, 20, 100])
    parser.add_argument("--recipes", nargs="+", default=["pfedrec-paper", "pfedrec"])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="on top of them")
    options = parser.parse_args()
    for recipe in options.recipes:
        flat = load_recipe(Path(f"recipes/{recipe}.toml"))
        settings = parse_settings(with_overrides(flat, options.set))
        for line in measured(settings, options.rounds, options.together):
            print(f"{recipe}, {line}")  # noqa: T201


if __name__ == "__main__":
    main()
