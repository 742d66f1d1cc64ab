"""After the last round: which model is served, its last figures, and the answers of the nodes."""

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
from server_app.messaging import Exchange, exchange_messages
from server_app.replies import (
    client_result_rows,
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
        client_names = tuple(_finishing_clients(training, progress, member))
        if client_names:
            instructions[member] = make_instruction(
                training,
                progress,
                client_names,
                client_names=client_names,
                finetune=training.settings.algorithm.finetune,
                install=training.is_main,
            )
    timeout_seconds = training.settings.federation.round_timeout
    shared_arrays = to_arrays(progress.server)
    messages = make_messages(grid, FINISH, instructions, shared_arrays, ConfigRecord())
    finish_exchange = exchange_messages(grid, messages, timeout_seconds)
    return _read_replies(training, finish_exchange, instructions)


def _finishing_clients(training: Training, progress: Progress, member: Member) -> Iterable[str]:
    """Clients that the last exchange concerns, sorted: all, or those that ever took part."""
    if training.settings.run.evaluate_clients == "all":
        return member.clients
    return sorted(
        client_name for client_name in progress.last_rounds if client_name in member.clients
    )


def _read_replies(
    training: Training, finish_exchange: Exchange, instructions: Mapping[Member, Instruction]
) -> Finish:
    last_sums: list[Sums] = []
    finetuned_sums: list[Sums] = []
    node_outcomes: list[Sums] = []
    client_rows: list[Mapping[str, Any]] = []
    dropped_replies: list[Mapping[str, Any]] = []
    finetune_enabled = training.settings.algorithm.finetune
    evaluates_full = shows_full(training.algorithm, training.settings.run.evaluate_clients)
    finetuned_prefix = FINETUNED if finetune_enabled or evaluates_full else ""
    for member, instruction in instructions.items():
        client_names = list(instruction.clients)
        try:
            finish_metrics = read_finish(
                content_of(finish_exchange, member.node), len(client_names)
            )
            node_last = evaluation_sums(finish_metrics)
            node_finetuned = evaluation_sums(finish_metrics, finetuned_prefix)
            node_outcome = under(OUTCOME, finish_metrics)
            row_prefix = FINETUNED if finetune_enabled else ""
            variant_names = training.algorithm.personalization.variants
            new_rows = list(
                client_result_rows(finish_metrics, row_prefix, client_names, variant_names)
            )
        except ProtocolError as error:
            dropped_replies.append(drop_of(member, error, len(client_names)))
            continue
        last_sums.append(node_last)
        finetuned_sums.append(node_finetuned)
        node_outcomes.append(node_outcome)
        client_rows += new_rows
    if not last_sums:
        raise RoundsAbandonedError(
            f"no node finished {training.name}: {format_reasons(dropped_replies)}"
        )
    finetuned_means = evaluation_means(finetuned_sums)
    return Finish(
        last=evaluation_means(last_sums),
        finetuned=finetuned_means if finetune_enabled else None,
        variants={FULL: finetuned_means} if evaluates_full else {},
        outcome=merge_sums(node_outcomes),
        clients=client_rows,
        dropped=dropped_replies,
    )
