"""Which clients take part in a round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pfsr_core.randomness import stream_seed


def sample_clients(
    client_names: Sequence[str], share: float, seed: int, round_: int
) -> tuple[str, ...]:
    """Draws the clients of a round, without replacement.

    Depends on the names, the seed and the round only: never on nodes or their ids.

    Args:
        client_names: All clients.
        share: The share of them that takes part; at least one client does.
        seed: The seed of the run.
        round_: The 1-based round.

    Returns:
        The sampled clients, in the order of ``client_names``.
    """
    num_sampled = max(1, round(share * len(client_names)))
    if num_sampled >= len(client_names):
        return tuple(client_names)
    rng = np.random.default_rng(stream_seed(seed, "sampling", round_))
    chosen_positions = np.sort(rng.permutation(len(client_names))[:num_sampled])
    return tuple(client_names[i] for i in chosen_positions)
