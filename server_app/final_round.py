"""After the last round: which model is served, its last figures, and what the nodes made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pfsr_core.federated.aggregation import merge_sums
from pfsr_core.federated.algorithm import FULL, Sums
from pfsr_core.federated.evaluation import shows_full
from pfsr_core.federated.protocol import (
    FINETUNED,
    FINISH,
    OUTCOME,
    TRAIN,
    Order,
    ProtocolError,
    under,
)
from server_app.checkpoints import Progress
from server_app.instructions import (
    RoundsAbandonedError,
    Training,
    content_of,
    drop_of,
    order_of,
    read_answers,
    reasons_of,
    send,
)
from server_app.messaging import Exchange
from server_app.replies import client_rows, evaluation_means, evaluation_sums, read_finish
from server_app.roster import Member, Roster
from server_app.strategy import compared


@dataclass(frozen=True)
class Finish:
    """The figures of the model after the last round, and of what was served.

    ``finetuned`` is None where nothing was finetuned; ``outcome`` is empty then. ``variants``:
    of those that are evaluated after the last round alone.
    """

    last: Mapping[str, float]
    finetuned: Mapping[str, float] | None
    variants: Mapping[str, Mapping[str, float]]
    outcome: Sums
    clients: Sequence[Mapping[str, Any]]
    dropped: Sequence[Mapping[str, Any]]


def evaluate_last(
    training: Training, roster: Roster, progress: Progress
) -> tuple[Progress, Mapping[str, float] | None]:
    """Compares the last round with the best one before it, where the best one is served.

    Costs an exchange of its own; elsewhere the figures, here None, come with :func:`finish`. Raises
    RoundsAbandonedError when no node answers it.
    """
    if not training.serves_best:
        return progress, None
    orders = {m: order_of(training, progress, m.clients, evaluate=True) for m in roster.members}
    timeout = training.settings.federation.round_timeout
    result = send(training, TRAIN, orders, progress, timeout)
    answers, dropped = read_answers(training, result, orders, progress.server.params)
    if not answers:
        raise RoundsAbandonedError(f"no node evaluated {training.name}: {reasons_of(dropped)}")
    means = evaluation_means([answer.sums for answer in answers.values()])
    return compared(training, roster, progress, means), means


def finish(training: Training, roster: Roster, progress: Progress, *, install: bool) -> Finish:
    """The last exchange. Raises RoundsAbandonedError when no node answers it."""
    if training.serves_best and progress.served is not None:
        progress = replace(progress, server=progress.served)
    orders = {}
    for member in roster.members:
        clients = tuple(_finishing(training, progress, member))
        if clients:
            parts = {"finetune": training.settings.algorithm.finetune, "install": install}
            orders[member] = order_of(training, progress, clients, clients=clients, **parts)
    timeout = training.settings.federation.round_timeout
    result = send(training, FINISH, orders, progress, timeout)
    return _read_finish(training, result, orders)


def _finishing(training: Training, progress: Progress, member: Member) -> Iterable[str]:
    """Clients that the last exchange concerns, sorted: all, or those that ever took part."""
    if training.settings.run.evaluate_clients == "all":
        return member.clients
    return sorted(name for name in progress.last_rounds if name in member.clients)


def _read_finish(training: Training, result: Exchange, orders: Mapping[Member, Order]) -> Finish:
    last: list[Sums] = []
    finetuned: list[Sums] = []
    outcomes: list[Sums] = []
    rows: list[Mapping[str, Any]] = []
    dropped: list[Mapping[str, Any]] = []
    finetunes = training.settings.algorithm.finetune
    full = shows_full(training.algorithm, training.settings.run.evaluate_clients)
    again = FINETUNED if finetunes or full else ""
    for member, order in orders.items():
        names = list(order.clients)
        try:
            metrics = read_finish(content_of(result, member), len(names))
            parts = evaluation_sums(metrics), evaluation_sums(metrics, again)
            outcome = under(OUTCOME, metrics)
            listed = FINETUNED if finetunes else ""
            new_rows = list(client_rows(metrics, listed, names, training.algorithm.views))
        except ProtocolError as error:
            dropped.append(drop_of(member, error, len(names)))
            continue
        last.append(parts[0])
        finetuned.append(parts[1])
        outcomes.append(outcome)
        rows += new_rows
    if not last:
        raise RoundsAbandonedError(f"no node finished {training.name}: {reasons_of(dropped)}")
    after = evaluation_means(finetuned)
    return Finish(
        last=evaluation_means(last),
        finetuned=after if finetunes else None,
        variants={FULL: after} if full else {},
        outcome=merge_sums(outcomes),
        clients=rows,
        dropped=dropped,
    )
