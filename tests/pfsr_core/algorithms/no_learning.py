"""A "model" that learns nothing: it ranks items by how rarely they were drawn as negatives.

    python -m tests.pfsr_core.algorithms.no_learning --rounds 5 50

Where held-out items are never drawn (protocol paper-pfedrec), it finds them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from pfsr_core.assembly.assemble import local_training
from pfsr_core.assembly.data import load_federation
from pfsr_core.assembly.settings import Settings, parse_settings
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.evaluation.ranking import per_user, rank_in_sample
from pfsr_core.training.item_scorer import draw_training_pairs
from pfsr_core.training.local import LocalTraining


def hit_rate(clients: Sequence[ClientDataset], training: LocalTraining, rounds: int) -> float:
    """HR@10 among 99 sampled items after ``rounds`` rounds, clients of one user each.

    Equal counts are put into a random order: ties count against the target otherwise.
    """
    found, coin = [], np.random.default_rng(0)
    for data in clients:
        drawn = np.zeros(data.num_items + 1)
        for round_ in range(1, rounds + 1):
            pairs = draw_training_pairs(
                training, data, round_, negatives_per_positive=4, by_row=True
            )
            zeros = (pairs.shares > 0) & (pairs.labels == 0)
            drawn += np.bincount(pairs.codes[pairs.rows[zeros]], minlength=len(drawn))
        everything = np.arange(len(drawn))
        user = data.users[0]
        scores = coin.random(len(drawn)) - drawn
        found.append(
            rank_in_sample(scores, everything, user.test, user.rivals(data.rankable_items))
        )
    return float(per_user(np.array(found), "hr@10").mean())


def after(settings: Settings, rounds: int) -> float:
    """:func:`hit_rate` on the federation of ``settings``."""
    return hit_rate(load_federation(settings).clients, local_training(settings), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, nargs="+", default=[5, 50])
    rounds = parser.parse_args().rounds
    for protocol in ("paper-pfedrec", "strict"):
        flat = {"data.protocol": protocol, "federation.partition": "user", "train.batch-size": 256}
        settings = parse_settings(flat)
        for count in rounds:
            print(f"{protocol}, {count} rounds: HR@10 {after(settings, count):.3f}")  # noqa: T201


if __name__ == "__main__":
    main()
