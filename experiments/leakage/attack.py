r"""What one upload says about a client's history, by item mode.

    python -m experiments.leakage.attack --clients 30 --seeds 0 1 2 \
        --out experiments/records/leakage.jsonl

An honest but curious server sees the reply of a client of one user in its first round and asks
which items are in the history. It knows the model, the vectors and what it sent, so it reads off
how far the vector of every item moved, and ranks the items

    norm    by the length of the move
    cosine  by how much it turns away from the mean move of all items
    far     by how far it is from the mean move

Public vectors are no basis: an item moves because others like it did. So the same is done with the
moves that single items would have had to make (ridge regression): "norm, apart" and so on.

Reported are the area under the ROC curve and, of as many items as the history has, the share that
the ranking finds. Chance is .5 and the share of the catalogue that a history is. ``--together``:
how many clients are summed before the server sees anything.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.data import load_federation
from pfsr_core.assembly.settings import parse_settings
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.evaluation.scoring import effective_model
from pfsr_core.federated.model import Assembly
from pfsr_core.models.parameter_names import ITEMS, PROJECTION, RESIDUAL
from pfsr_core.runs.environment import commit
from pfsr_core.settings.fields import Value
from pfsr_core.settings.recipes import load_recipe

RECIPE = Path("recipes/semantic.toml")
MODES: dict[str, Mapping[str, Value]] = {
    "shared": {"model.items": "shared", "model.item-start": "common"},
    "dual": {"model.items": "dual"},
    "semantic, words alone": {"model.items": "semantic", "model.id-dim": 0},
    "semantic, 64 numbers of the id": {"model.items": "semantic", "model.id-dim": 64},
    "semantic, 192 numbers of the id": {"model.items": "semantic", "model.id-dim": 192},
    "semantic, 448 numbers of the id": {"model.items": "semantic", "model.id-dim": 448},
    "semantic, 960 numbers of the id": {"model.items": "semantic", "model.id-dim": 960},
}
RIDGE = 1e-2  # of public vectors of length 1
Scores = NDArray[np.float32]


def moves(assembly: Assembly, data: ClientDataset) -> Tensor:
    """How the vector of every item moves between what a client received and its reply: (V, D)."""
    algorithm = assembly.algorithm
    server, state = algorithm.server.init(), algorithm.client.init(data)
    reply = algorithm.client_update(server.broadcast(), state, data).params
    none = {RESIDUAL: torch.zeros_like(state[RESIDUAL])} if RESIDUAL in state else {}
    before, after = (
        effective_model(assembly.task, {**shared, **none}, data)[ITEMS]
        for shared in (server.params, reply)
    )
    return (after - before)[1:]


def apart(assembly: Assembly, data: ClientDataset, moved: Tensor) -> Tensor:
    """The moves of single items that explain ``moved`` (V, D), all items' mixed: (V, D).

    With public vectors T (V, S) the projection's change is a sum over items of ``move_i t_i``, and
    ``moved`` is T T^T times those moves. Tables mix nothing.
    """
    if PROJECTION not in assembly.shapes:
        return moved
    width = assembly.shapes[PROJECTION][1]
    none = torch.zeros(len(data.touched) + 1, width)
    public = effective_model(assembly.task, {PROJECTION: torch.eye(width), RESIDUAL: none}, data)[
        ITEMS
    ][1:].double()
    overlap = public @ public.T + RIDGE * torch.eye(len(public), dtype=torch.float64)
    found: Tensor = torch.linalg.solve(overlap, moved.double())
    return found.to(moved.dtype)


def by_norm(moved: Tensor) -> Scores:
    """Items that moved far first."""
    scores: Scores = torch.linalg.vector_norm(moved, dim=1).numpy()
    return scores


def by_cosine(moved: Tensor) -> Scores:
    """Items that moved against the mean first."""
    return -torch.nn.functional.cosine_similarity(moved, moved.mean(0)[None]).numpy()


def by_distance(moved: Tensor) -> Scores:
    """Items that moved unlike the mean first."""
    return by_norm(moved - moved.mean(0))


ATTACKS: dict[str, Callable[[Tensor], Scores]] = {
    "norm": by_norm,
    "cosine": by_cosine,
    "far": by_distance,
}


def found(scores: Scores, history: NDArray[np.bool_]) -> tuple[float, float]:
    """(area under the ROC curve, share of the history among as many highest scores)."""
    order = np.argsort(scores, kind="stable")
    count, others = int(history.sum()), int((~history).sum())
    ranks = np.flatnonzero(history[order])
    area = (ranks.sum() - count * (count - 1) / 2) / (count * others)
    return float(area), float(history[order[-count:]].mean())


def leak(
    assembly: Assembly, clients: Sequence[ClientDataset], together: int = 1
) -> dict[str, tuple[float, float]]:
    """Of each attack, the means over ``clients`` of :func:`found`.

    The server sees the mean move of ``together`` clients and asks for the history of each. Clients
    that fill no group are left out: fewer in a sum would be found more easily. Raises ValueError
    without a whole group.
    """
    if not 0 < together <= len(clients):
        raise ValueError(f"{len(clients)} clients make no group of {together}")
    results: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for start in range(0, len(clients) - together + 1, together):
        group = clients[start : start + together]
        moved = torch.stack([moves(assembly, data) for data in group]).mean(0)
        seen = {"": moved, ", apart": apart(assembly, group[0], moved)}
        guesses = {
            name + form: attack(rows)
            for name, attack in ATTACKS.items()
            for form, rows in seen.items()
        }
        for data in group:
            history = np.zeros(len(moved), np.bool_)
            history[data.touched - 1] = True
            for name, scores in guesses.items():
                results[name].append(found(scores, history))
    means = {name: np.mean(pairs, axis=0) for name, pairs in results.items()}
    return {name: (float(area), float(share)) for name, (area, share) in means.items()}


def measured(
    mode: str, recipe: Mapping[str, Value], count: int, together: int = 1
) -> dict[str, Any]:
    """The record of one of MODES on top of ``recipe``: about ``count`` clients of one user."""
    settings = parse_settings({**recipe, **MODES[mode], "federation.partition": "user"})
    federation = load_federation(settings)
    attacked = federation.clients[:: max(1, len(federation.clients) // count)]
    attacked = attacked[: len(attacked) // together * together]
    results = leak(assemble(settings, federation.catalogue), attacked, together)
    return {
        "mode": mode,
        "seed": settings.run.seed,
        "clients": len(attacked),
        "together": together,
        "chance": float(np.mean([len(data.touched) / data.num_items for data in attacked])),
        "attacks": {name: {"auc": a, "found": s} for name, (a, s) in results.items()},
        "commit": commit()[:7],
    }


def record_line(record: Mapping[str, Any]) -> str:
    """A record as a line of text."""
    listed = [
        f"{n} AUC {a['auc']:.3f} found {a['found']:.3f}" for n, a in record["attacks"].items()
    ]
    return f"seed {record['seed']}, {record['mode']}: {', '.join(listed)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command: measures every item mode at every seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--clients", type=int, default=50, help="clients of one user to attack")
    parser.add_argument("--together", type=int, default=1, help="clients whose mean is seen")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--out", type=Path, help="JSON lines: one for each mode and seed")
    options = parser.parse_args(argv)
    lines = []
    for seed in options.seeds:
        for mode in MODES:
            flat = {**load_recipe(options.recipe), "run.seed": seed}
            lines.append(measured(mode, flat, options.clients, options.together))
            sys.stdout.write(record_line(lines[-1]) + "\n")
    if options.out is not None:
        options.out.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
