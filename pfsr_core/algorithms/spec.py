"""What the registry holds of an algorithm: all that other packages ask about it by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pfsr_core.algorithms.server_optimizers import Averaging
from pfsr_core.federated.algorithm import FederatedAlgorithm, Sums
from pfsr_core.settings.fields import Value
from pfsr_core.settings.sections import ModelSettings
from pfsr_core.training.local import LocalTraining
from pfsr_core.training.task import Task

Build = Callable[[Task, LocalTraining, Any, Averaging], FederatedAlgorithm]
"""(task, training, the algorithm's own settings, averaging) -> the algorithm"""

MakeTask = Callable[[ModelSettings, Sequence[str], int], Task]
"""(model settings, item ids, seed of the run) -> the task of an algorithm's own model"""


@dataclass(frozen=True)
class ItemDemand:
    """The only ``model.items`` that an algorithm works with.

    Attributes:
        mode: Its name.
        reason: Why, as a verb phrase after the algorithm's name.
        consequence: What follows from that mode, appended to the fix.
    """

    mode: str
    reason: str
    consequence: str = ""


@dataclass(frozen=True)
class Labels:
    """How reports write about an algorithm.

    Attributes:
        loss: What its training loss is.
        outcome_column: Title of the column of the client table that holds ``outcome``; empty: the
            table has none.
        outcome: The entry of one client in that column, from the sums of its
            ``Personalization.outcome``; empty where it has none.
    """

    loss: str = "Cross-entropy of the next item among those that the client ranks"
    outcome_column: str = ""
    outcome: Callable[[Sums], str] = lambda _sums: ""


def accept_all(_values: Mapping[str, Value]) -> None:
    """The default ``check_run``."""


@dataclass(frozen=True)
class AlgorithmSpec:
    """An algorithm of the registry.

    Attributes:
        build: Makes the algorithm.
        settings: Its section, ``algorithm.<name>`` in the settings; None where it has none.
        make_task: Makes the task of a model of its own; None: it trains the next-item model.
        items: The item mode that it demands; None: any.
        unread: Settings outside its section that it would ignore, by dotted key, with the reason
            as a phrase after the value. They must have their defaults.
        check_run: Refuses settings of a run that do not fit the algorithm, all of them given by
            dotted key. Raises SettingsError.
        labels: How reports write about it.
    """

    build: Build
    settings: type[Any] | None = None
    make_task: MakeTask | None = None
    items: ItemDemand | None = None
    unread: Mapping[str, str] = field(default_factory=dict)
    check_run: Callable[[Mapping[str, Value]], None] = accept_all
    labels: Labels = Labels()
