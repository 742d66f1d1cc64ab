"""Seeds of named random streams: one seed a run, no global generator."""

from __future__ import annotations

import hashlib

import numpy as np


def stream_seed(seed: int, *names: object) -> int:
    """A 63-bit seed for one named stream of randomness, e.g. (seed, "client", id, round)."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def noise_generator(stream: int) -> np.random.Generator:
    """Where the dropout of one client's training in one round comes from."""
    return np.random.Generator(np.random.SFC64(stream_seed(stream, "dropout")))
