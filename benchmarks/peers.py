"""What ours is compared with: other packages' code where they are installed, named stand-ins else.

``pip install pfsr[bench]`` installs the peers that a machine without a GPU can have.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from pfsr_core.models.item_scorer import ItemScorer
from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.params import Params
from pfsr_core.training.item_scorer import TrainingPairs
from pfsr_core.training.local import LocalTraining

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class MissingPeerError(RuntimeError):
    """A peer that is not installed; says how to get it."""


def reference_scan() -> tuple[Scan, str]:
    """mamba-ssm's reference scan, or a stand-in, and what to call it."""
    try:
        module = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except Exception:  # not installed, or without the CUDA library that its import wants
        return step_by_step, "step by step (stand-in for mamba-ssm's reference)"
    theirs = module.selective_scan_ref

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        y: Tensor = theirs(x.mT, dt.mT, A, B.mT, C.mT)
        return y.mT

    return scan, "mamba-ssm, reference"


def step_by_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Decays and inputs for all positions first, then one position after the other.

    x, dt (B, L, E), A (E, N), B and C (B, L, N) to y (B, L, E).
    """
    decay = torch.exp(dt[..., None] * A)
    drive = (dt * x)[..., None] * B[:, :, None]
    state, outputs = torch.zeros_like(drive[:, 0]), []
    for position in range(x.shape[1]):
        state = decay[:, position] * state + drive[:, position]
        outputs.append((state @ C[:, position, :, None])[..., 0])
    return torch.stack(outputs, dim=1)


def mambapy_scan() -> Scan:
    """The parallel scan of mambapy.

    Raises:
        MissingPeerError: The package is not installed.
    """
    try:
        module = importlib.import_module("mambapy.pscan")
    except ImportError:
        raise MissingPeerError("not installed; pip install 'pfsr[bench]'") from None

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        drive = (dt * x)[..., None] * B[:, :, None]
        states: Tensor = module.pscan(torch.exp(dt[..., None] * A), drive)
        return (states @ C[..., None])[..., 0]

    return scan


class Attention(nn.Module):
    """Causal multi-head attention with its four projections: (B, L, D) to (B, L, D)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        """Makes projections of random weights for ``num_heads`` heads over ``dim`` features."""
        super().__init__()
        self.num_heads = num_heads
        self.projection, self.output = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attends from each place to itself and the places before it."""
        parts = self.projection(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True)
        mapped: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return mapped


def scorer_round(
    shared: Params,
    heads: Sequence[Params],
    client_pairs: Sequence[TrainingPairs],
    training: LocalTraining,
) -> Tensor:
    """The mean item table (V + 1, D) of PFedRec's clients after a round, one after the other.

    A stand-in, built as the authors' code is: for each client a copy of the module, a loader over
    its samples, two optimisers, a dense gradient of the whole table. One epoch, item step "batch".
    """
    table = shared[ITEMS]
    common, total = ItemScorer(len(table) - 1, table.shape[1]), torch.zeros_like(table)
    common.load_state_dict({**shared, **heads[0]})
    for head, pairs in zip(heads, client_pairs, strict=True):
        model = copy.deepcopy(common)
        model.load_state_dict({**common.state_dict(), **head})
        total += _train_alone(model, pairs, training)
    return total / len(heads)


def _train_alone(model: ItemScorer, pairs: TrainingPairs, training: LocalTraining) -> Tensor:
    drawn, codes = torch.from_numpy(pairs.shares > 0), torch.from_numpy(pairs.codes)
    items, labels = codes[torch.from_numpy(pairs.rows)[drawn]], torch.from_numpy(pairs.labels)
    loader = DataLoader(TensorDataset(items, labels[drawn]), training.settings.batch_size)
    optimizers = (
        SGD(model.score.parameters(), lr=training.settings.learning_rate),
        SGD(model.items.parameters(), lr=training.settings.item_learning_rate),
    )
    criterion = nn.BCELoss()
    for codes, targets in loader:
        for optimizer in optimizers:
            model.zero_grad()
            scores = torch.sigmoid(model.score(model.items(codes)))[:, 0]
            criterion(scores, targets).backward()
            optimizer.step()
    return model.items.weight.detach()
