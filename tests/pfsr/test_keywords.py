"""Settings as keyword arguments: short, nested or whole, and what an unknown one is told."""

from __future__ import annotations

import numpy as np
import pytest

from pfsr.keywords import setting_keys
from pfsr_core.assembly.settings import Settings, flat_settings
from pfsr_core.settings.fields import SettingsError

KNOWN = (*flat_settings(Settings()), "algorithm.pfsr.rate", "train.rate", "data.size", "run.size")


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        ({"rounds": 3}, {"federation.rounds": 3}),
        ({"embedding_dim": 8}, {"model.embedding-dim": 8}),
        ({"train.batch-size": 8}, {"train.batch-size": 8}),
        ({"train.batch_size": 8}, {"train.batch-size": 8}),
        ({"train": {"batch_size": 8, "learning-rate": 0.1}},
         {"train.batch-size": 8, "train.learning-rate": 0.1}),
        ({"compare": ["fed-avg", "local-only"]}, {"run.compare": "fed-avg local-only"}),
        ({"rounds": np.int64(3), "dropout": np.float32(0.5)},
         {"federation.rounds": 3, "model.dropout": 0.5}),
        ({"rate": 1.0}, {"train.rate": 1.0}),
        ({"algorithm": {"pfsr": {"rate": 1.0}}}, {"algorithm.pfsr.rate": 1.0}),
    ],
)  # fmt: skip
def test_names_become_keys(given, keys) -> None:
    found = setting_keys(given, KNOWN)
    assert found == keys
    assert all(type(value) in (bool, int, float, str) for value in found.values())


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"roundz": 3}, "unknown setting 'roundz'. Did you mean federation.rounds"),
        ({"train": {"batch": 3}}, "unknown setting 'train.batch'. Did you mean train.batch-size"),
        ({"zzzzzz": 3}, "unknown setting 'zzzzzz'. Fix: "),
        ({"name": "x"}, "'name' is ambiguous. Fix: write one of .*run.name"),
        ({"size": 1}, "'size' is ambiguous"),
        ({"rounds": None}, "rounds is a NoneType. Fix: give one number"),
        ({"rounds": object()}, "rounds is a object"),
    ],
)
def test_what_is_no_setting_is_refused(given, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        setting_keys(given, KNOWN)
