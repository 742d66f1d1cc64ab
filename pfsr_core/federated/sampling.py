"""Which clients take part in a round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pfsr_core.randomness import stream_seed


def sample_clients(clients: Sequence[str], share: float, seed: int, round_: int) -> tuple[str, ...]:
    """``share`` of the clients, at least one, without replacement; in the given order.

    Depends on the names, the seed and the round only: never on nodes or their ids.
    """
    count = max(1, round(share * len(clients)))
    if count >= len(clients):
        return tuple(clients)
    rng = np.random.default_rng(stream_seed(seed, "sampling", round_))
    chosen = np.sort(rng.permutation(len(clients))[:count])
    return tuple(clients[i] for i in chosen)
