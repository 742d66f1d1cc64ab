"""Seeds of named random streams: one seed a run, no global generator."""

from __future__ import annotations

import hashlib

import numpy as np


def stream_seed(seed: int, *stream_names: object) -> int:
    """Derives the seed of one named stream of random numbers from the seed of a run.

    Args:
        seed: The seed of the run.
        *stream_names: What the stream is for, e.g. "client", its id and the round.

    Returns:
        63 bits of a SHA-256 digest.
    """
    digest = hashlib.sha256(repr((seed, *stream_names)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def noise_generator(stream: int) -> np.random.Generator:
    """The generator of the dropout bits of one client's training in one round."""
    return np.random.Generator(np.random.SFC64(stream_seed(stream, "dropout")))
