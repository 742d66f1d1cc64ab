"""Named tensors and the arithmetic on them.

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
    def of(all_names: Iterable[str], *, private: Callable[[str], bool]) -> Partition:
        """Splits names by a predicate.

        Args:
            all_names: All names of a model.
            private: Whether a name is private; every other one is shared.
        """
        all_names = list(all_names)
        private_names = frozenset(filter(private, all_names))
        return Partition(frozenset(all_names) - private_names, private_names).check(all_names)

    def check(self, all_names: Iterable[str]) -> Partition:
        """Raises PartitionError unless the parts are disjoint and cover ``all_names`` exactly."""
        all_names = frozenset(all_names)
        duplicate_names = self.shared & self.private
        missing_names = all_names - self.shared - self.private
        unknown_names = (self.shared | self.private) - all_names
        for problem, problem_names in (
            ("both parts", duplicate_names),
            ("no part", missing_names),
            ("no model", unknown_names),
        ):
            if problem_names:
                raise PartitionError(f"names in {problem}: {', '.join(sorted(problem_names))}")
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
    """The shape of every tensor, by name."""
    return {name: tuple(tensor.shape) for name, tensor in params.items()}


def flatten(params: Mapping[str, Tensor]) -> Tensor:
    """One float32 vector, tensors in the order of their sorted names: (sum of sizes,)."""
    flat_tensors = [params[name].detach().reshape(-1).float() for name in sorted(params)]
    return torch.cat(flat_tensors) if flat_tensors else torch.empty(0)


def unflatten(flat_vector: Tensor, shapes: Shapes) -> Params:
    """Undoes :func:`flatten`.

    Args:
        flat_vector: Values in the order of sorted names (sum of sizes,).
        shapes: Names and shapes of the tensors.

    Returns:
        Copies, in the order of ``shapes``.

    Raises:
        ValueError: The sizes do not agree.
    """
    tensor_sizes = {name: torch.Size(shapes[name]).numel() for name in sorted(shapes)}
    if flat_vector.dim() != 1 or flat_vector.numel() != sum(tensor_sizes.values()):
        raise ValueError(
            f"a flat vector of shape {tuple(flat_vector.shape)} for shapes of "
            f"{sum(tensor_sizes.values())} values"
        )
    flat_tensors = flat_vector.split(list(tensor_sizes.values()))
    tensors_by_name = {
        name: flat_tensor.reshape(shapes[name]).clone()
        for name, flat_tensor in zip(tensor_sizes, flat_tensors, strict=True)
    }
    return {name: tensors_by_name[name] for name in shapes}


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Euclidean norm of ``a - b`` over all names: a scalar; its gradient at zero is zero."""
    tensor_gaps = [(a[name] - b[name]).reshape(-1) for name in a]
    norm: Tensor = torch.linalg.vector_norm(torch.cat(tensor_gaps))
    return norm


def fingerprint(shapes: Mapping[str, tuple[int, ...]], *facts: str) -> str:
    """Identifies the model that a state belongs to.

    Args:
        shapes: Names and shapes of the model's parameters.
        *facts: Whatever else a state must agree with.

    Returns:
        The first 16 hexadecimal digits of a SHA-256 digest.
    """
    hashed_text = repr(sorted(shapes.items())) + repr(facts)
    return hashlib.sha256(hashed_text.encode()).hexdigest()[:16]


def pack(params: Params) -> Flat:
    """Parameters as one vector of float32, (sum of sizes,)."""
    flat_vector: Flat = flatten(params).numpy()
    return flat_vector


def unpack(flat_vector: NDArray[Any], shapes: Shapes) -> Params:
    """Undoes :func:`pack`.

    Args:
        flat_vector: Float32 values (sum of sizes,).
        shapes: Names and shapes of the tensors.

    Raises:
        ValueError: Another dtype or size.
    """
    if flat_vector.dtype != np.float32:
        raise ValueError(f"dtype {flat_vector.dtype} instead of float32")
    return unflatten(torch.from_numpy(np.array(flat_vector)), shapes)


def size_of(shapes: Shapes) -> int:
    """Values in the flat vector of ``shapes``."""
    return sum(prod(shape) for shape in shapes.values())
