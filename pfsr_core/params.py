"""Named tensors, the one currency of the house, and the arithmetic on them.

A flat vector is the form in which parameters travel: one float32 array, cut by a table of names
and shapes that both sides derive from the same model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Params = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
Flat = NDArray[np.float32]


class PartitionError(ValueError):
    """Names that belong to no part, or to more than one."""


@dataclass(frozen=True)
class Partition:
    """Which names are shared with the server and which are private to a client.

    ``of`` checks that every name of a model falls into exactly one part, so that a new module
    cannot be forgotten silently.
    """

    shared: frozenset[str]
    private: frozenset[str]

    @staticmethod
    def of(names: Iterable[str], *, private: Callable[[str], bool]) -> Partition:
        """Splits ``names`` by the predicate ``private``."""
        names = list(names)
        kept = frozenset(filter(private, names))
        return Partition(frozenset(names) - kept, kept).check(names)

    def check(self, names: Iterable[str]) -> Partition:
        """Raises PartitionError unless the parts are disjoint and cover ``names`` exactly."""
        names = frozenset(names)
        twice = self.shared & self.private
        missing = names - self.shared - self.private
        unknown = (self.shared | self.private) - names
        for problem, which in (("both parts", twice), ("no part", missing), ("no model", unknown)):
            if which:
                raise PartitionError(f"names in {problem}: {', '.join(sorted(which))}")
        return self

    def split(self, params: Params) -> tuple[Params, Params]:
        """(shared, private) tensors of a whole model."""
        self.check(params)
        return select(params, self.shared), select(params, self.private)


def select(params: Mapping[str, Tensor], names: Iterable[str]) -> Params:
    """The tensors of ``names``, in the order of ``params``."""
    names = frozenset(names)
    return {name: tensor for name, tensor in params.items() if name in names}


def with_prefix(params: Mapping[str, Tensor], prefix: str) -> Params:
    """Copies under ``prefix/name``: a state is written to a file, which holds no tensor twice."""
    return {f"{prefix}/{name}": tensor.clone() for name, tensor in params.items()}


def of_prefix(params: Mapping[str, Tensor], prefix: str) -> Params:
    """Undoes :func:`with_prefix`: the tensors under ``prefix``, without it; empty where none is."""
    start = f"{prefix}/"
    return {n.removeprefix(start): tensor for n, tensor in params.items() if n.startswith(start)}


def clone(params: Mapping[str, Tensor]) -> Params:
    """Detached copies."""
    return {name: tensor.detach().clone() for name, tensor in params.items()}


def shapes_of(params: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in params.items()}


def flatten(params: Mapping[str, Tensor]) -> Tensor:
    """One float32 vector, tensors in the order of their sorted names: (sum of sizes,)."""
    parts = [params[name].detach().reshape(-1).float() for name in sorted(params)]
    return torch.cat(parts) if parts else torch.empty(0)


def unflatten(flat: Tensor, shapes: Shapes) -> Params:
    """Undoes :func:`flatten`; raises ValueError when the sizes do not agree."""
    sizes = {name: torch.Size(shapes[name]).numel() for name in sorted(shapes)}
    if flat.dim() != 1 or flat.numel() != sum(sizes.values()):
        raise ValueError(
            f"a flat vector of shape {tuple(flat.shape)} for shapes of {sum(sizes.values())} values"
        )
    pieces = flat.split(list(sizes.values()))
    named = {
        name: piece.reshape(shapes[name]).clone() for name, piece in zip(sizes, pieces, strict=True)
    }
    return {name: named[name] for name in shapes}


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Euclidean norm of ``a - b`` over all names: a scalar; its gradient at zero is zero."""
    gaps = [(a[name] - b[name]).reshape(-1) for name in a]
    norm: Tensor = torch.linalg.vector_norm(torch.cat(gaps))
    return norm


def fingerprint(shapes: Mapping[str, tuple[int, ...]], *facts: str) -> str:
    """Short hash of a model's names and shapes and of further facts: what a state belongs to."""
    text = repr(sorted(shapes.items())) + repr(facts)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pack(params: Params) -> Flat:
    """Parameters as one vector of float32, (sum of sizes,)."""
    vector: Flat = flatten(params).numpy()
    return vector


def unpack(vector: NDArray[Any], shapes: Shapes) -> Params:
    """Undoes :func:`pack`; raises ValueError on another dtype or size."""
    if vector.dtype != np.float32:
        raise ValueError(f"dtype {vector.dtype} instead of float32")
    return unflatten(torch.from_numpy(np.array(vector)), shapes)


def size_of(shapes: Shapes) -> int:
    """Values in the flat vector of ``shapes``."""
    return sum(prod(shape) for shape in shapes.values())
