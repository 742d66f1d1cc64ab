from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pfsr_core.federated.sampling import sample_clients


@given(st.integers(1, 30), st.floats(0.01, 1.0), st.integers(0, 5))
def test_samples_are_seeded_ordered_and_of_the_right_size(n: int, share: float, seed: int) -> None:
    names = [f"{i:02d}" for i in range(n)]
    sample = sample_clients(names, share, seed, 3)
    assert sample == sample_clients(names, share, seed, 3) == tuple(sorted(sample))
    assert len(set(sample)) == len(sample) == max(1, round(share * n))


def test_rounds_differ() -> None:
    names = [str(i) for i in range(20)]
    assert len({sample_clients(names, 0.3, 0, round_) for round_ in range(10)}) > 5
