"""Keys of settings that have moved, with where to: they are refused, never read."""

from __future__ import annotations

MOVED_KEYS: dict[str, str] = {
    "algorithm.server-optimizer": "algorithm.server.optimizer",
    "algorithm.server-learning-rate": "algorithm.server.learning-rate",
    "algorithm.server-momentum": "algorithm.server.momentum",
    "algorithm.server-decay": "algorithm.server.decay",
    "algorithm.server-epsilon": "algorithm.server.epsilon",
    "algorithm.mask-mode": "algorithm.pfsr.mask-mode",
    "algorithm.rho": "algorithm.pfsr.rho",
    "algorithm.tau": "algorithm.pfsr.fisher-threshold",
    "algorithm.fisher-samples": "algorithm.pfsr.fisher-samples",
    "algorithm.serve": "algorithm.pfsr.serve",
    "algorithm.anchor": "algorithm.pfsr.anchor",
    "algorithm.keep-strength": "algorithm.pfsr.anchor-strength",
    "algorithm.magnitude-strength": "algorithm.pfsr.magnitude-strength",
    "algorithm.magnitude-side": "algorithm.pfsr.magnitude-side",
    "algorithm.two-phases": "algorithm.pfsr.two-phases",
    "algorithm.aggregation": "algorithm.pfsr.aggregation",
    "algorithm.proximal-strength": "algorithm.fed-prox.strength",
    "algorithm.item-step": "algorithm.pfedrec.item-step",
    "algorithm.negatives-per-positive": "algorithm.pfedrec.negatives-per-positive",
    "algorithm.finetune-mode": "algorithm.fecosr.finetune-mode",
    "algorithm.finetune-epochs": "algorithm.fecosr.finetune-epochs",
    "algorithm.finetune-step": "algorithm.fecosr.finetune-step",
    "algorithm.safety-rule": "algorithm.fecosr.safety-rule",
}
