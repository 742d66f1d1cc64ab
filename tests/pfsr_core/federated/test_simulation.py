from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pfsr_core.federated.simulation import hosted_by


@given(st.integers(1, 30), st.integers(1, 12))
def test_every_client_is_hosted_once(clients: int, nodes: int) -> None:
    names = [str(i) for i in range(clients)]
    hosted = [name for node in range(nodes) for name in hosted_by(names, node, nodes)]
    assert sorted(hosted) == sorted(names)
