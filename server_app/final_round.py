"""After the last round: which model is served, its last figures, and what the nodes made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from pfsr_core.federated.aggregation import merge_sums
from pfsr_core.federated.algorithm import FULL, Sums
from pfsr_core.federated.evaluation import shows_full
from pfsr_core.federated.protocol import (
    FINETUNED,
    FINISH,
    OUTCOME,
    Instruction,
    ProtocolError,
    under,
)
from server_app.checkpoints import Progress
from server_app.messaging import Exchange, match_replies, send_and_receive
from server_app.replies import (
    client_rows,
    content_of,
    drop_of,
    evaluation_means,
    evaluation_sums,
    format_reasons,
    read_finish,
)
from server_app.roster import Member, Roster
from server_app.strategy import (
    RoundsAbandonedError,
    Training,
    make_instruction,
    make_messages,
    to_arrays,
)


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


def finish(grid: Grid, training: Training, roster: Roster, progress: Progress) -> Finish:
    """The last exchange: the nodes finetune, evaluate, and keep the main algorithm's model.

    Raises:
        RoundsAbandonedError: no node answers it.
    """
    if training.serves_best and progress.served is not None:
        progress = replace(progress, server=progress.served)
    instructions = {}
    for member in roster.members:
        clients = tuple(_finishing(training, progress, member))
        if clients:
            instructions[member] = make_instruction(
                training,
                progress,
                clients,
                clients=clients,
                finetune=training.settings.algorithm.finetune,
                install=training.is_main,
            )
    timeout = training.settings.federation.round_timeout
    arrays = to_arrays(progress.server)
    messages = make_messages(grid, FINISH, instructions, arrays, ConfigRecord())
    received = match_replies(messages, send_and_receive(grid, messages, timeout), timeout)
    return _read_replies(training, received, instructions)


def _finishing(training: Training, progress: Progress, member: Member) -> Iterable[str]:
    """Clients that the last exchange concerns, sorted: all, or those that ever took part."""
    if training.settings.run.evaluate_clients == "all":
        return member.clients
    return sorted(name for name in progress.last_rounds if name in member.clients)


def _read_replies(
    training: Training, received: Exchange, instructions: Mapping[Member, Instruction]
) -> Finish:
    last: list[Sums] = []
    finetuned: list[Sums] = []
    outcomes: list[Sums] = []
    rows: list[Mapping[str, Any]] = []
    dropped: list[Mapping[str, Any]] = []
    finetunes = training.settings.algorithm.finetune
    full = shows_full(training.algorithm, training.settings.run.evaluate_clients)
    again = FINETUNED if finetunes or full else ""
    for member, instruction in instructions.items():
        names = list(instruction.clients)
        try:
            metrics = read_finish(content_of(received, member.node), len(names))
            parts = evaluation_sums(metrics), evaluation_sums(metrics, again)
            outcome = under(OUTCOME, metrics)
            listed = FINETUNED if finetunes else ""
            variants = training.algorithm.personalization.variants
            new_rows = list(client_rows(metrics, listed, names, variants))
        except ProtocolError as error:
            dropped.append(drop_of(member, error, len(names)))
            continue
        last.append(parts[0])
        finetuned.append(parts[1])
        outcomes.append(outcome)
        rows += new_rows
    if not last:
        raise RoundsAbandonedError(f"no node finished {training.name}: {format_reasons(dropped)}")
    after = evaluation_means(finetuned)
    return Finish(
        last=evaluation_means(last),
        finetuned=after if finetunes else None,
        variants={FULL: after} if full else {},
        outcome=merge_sums(outcomes),
        clients=rows,
        dropped=dropped,
    )
