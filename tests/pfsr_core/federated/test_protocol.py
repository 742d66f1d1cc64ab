"""Packing: what goes in comes out, and what is not in the protocol is refused with its name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pfsr_core import params as packing
from pfsr_core.federated import protocol
from pfsr_core.federated.aggregation import unpack_shared
from pfsr_core.federated.protocol import Instruction, ProtocolError
from pfsr_core.params import shapes_of

PARAMS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([-1.5])}


def test_parameters_survive_packing():
    flat = packing.pack(PARAMS)
    back = packing.unpack(flat, shapes_of(PARAMS))
    assert flat.dtype == np.float32
    assert flat.tolist() == [-1.5, 0, 1, 2, 3, 4, 5]
    assert list(back) == list(PARAMS)
    assert all(torch.equal(back[name], PARAMS[name]) for name in PARAMS)


def test_no_parameters_pack_into_nothing():
    assert packing.pack({}).shape == (0,)
    assert packing.unpack(packing.pack({}), {}) == {}


def test_unpacked_tensors_are_not_views_of_the_message():
    flat = packing.pack(PARAMS)
    back = packing.unpack(flat, shapes_of(PARAMS))
    flat[:] = 7
    assert torch.equal(back["a"], PARAMS["a"])


@pytest.mark.parametrize(
    ("flat", "words"),
    [
        (np.zeros(7, np.float64), "dtype float64"),
        (np.zeros(6, np.float32), "7 values"),
        (np.zeros((7, 1), np.float32), "7 values"),
    ],
)
def test_another_vector_is_refused(flat, words):
    with pytest.raises(ProtocolError, match=words):
        unpack_shared(flat, shapes_of(PARAMS))


def test_size_is_the_length_of_the_vector():
    assert packing.size_of(shapes_of(PARAMS)) == len(packing.pack(PARAMS))
    assert packing.size_of({}) == 0


@pytest.mark.parametrize(
    "instruction",
    [
        Instruction("run", "pfsr", 1, {}),
        Instruction("run", "pfsr", 3, {"b": 2, "a": 0}, ("a",), {"target-norm": 0.1}, True),
        Instruction("run", "fed-avg", 9, {"a": 8}, finetune=True, install=True),
    ],
)
def test_an_instruction_survives_its_config(instruction):
    config = protocol.instruction_to_config(instruction)
    assert protocol.instruction_from_config(config) == instruction
    assert list(protocol.instruction_from_config(config).last_rounds) == list(
        instruction.last_rounds
    )


@pytest.mark.parametrize("missing", ["run", "clients", "signal-values", "install"])
def test_an_instruction_that_lacks_something_is_refused(missing):
    config = protocol.instruction_to_config(Instruction("run", "pfsr", 1, {"a": 0}))
    del config[missing]
    with pytest.raises(ProtocolError, match=missing):
        protocol.instruction_from_config(config)


def test_sums_come_back_from_under_their_prefix():
    metrics = {**protocol.prefixed("valid/", {"users": 3.0, "hr@10": 1.0}), "weight": 5.0}
    assert protocol.under("valid/", metrics) == {"users": 3.0, "hr@10": 1.0}


@pytest.mark.parametrize("value", [None, [1.0], "1", True])
def test_only_a_number_is_a_number(value):
    metrics = {} if value is None else {"weight": value}
    with pytest.raises(ProtocolError, match="weight is"):
        protocol.scalar(metrics, "weight")


@pytest.mark.parametrize("value", [[1.0], [1.0, 2.0, 3.0], 2.0])
def test_a_list_has_the_length_it_must_have(value):
    with pytest.raises(ProtocolError, match="list of 2"):
        protocol.numbers({"norms": value}, "norms", 2)


def test_a_further_metric_is_named():
    protocol.check_names({"weight": 1.0, "valid/users": 1.0}, ["weight"], ["valid/"])
    with pytest.raises(ProtocolError, match="'extra'"):
        protocol.check_names({"weight": 1.0, "extra": 1.0}, ["weight"], ["valid/"])
