"""The round loop: who is asked, what is sent, which answers count. The arithmetic is the core's.

One round is one exchange. Its answers carry the evaluation of what was sent, so a round's metrics
arrive with the round after it, and those of the last round with what follows (``ending``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pfsr_core.assembly.settings import Settings
from pfsr_core.federated.aggregation import merge_replies
from pfsr_core.federated.algorithm import Reply, Sums
from pfsr_core.federated.protocol import TRAIN, Order
from pfsr_core.federated.simulation import sample_clients
from pfsr_core.runs.results import Cost, Participation, Traffic, round_line
from server_app.checkpoints import Progress
from server_app.instructions import (
    RoundsAbandonedError,
    Training,
    order_of,
    read_answers,
    reasons_of,
    send,
)
from server_app.membership import PATIENCE_SECONDS, join, newly_refused
from server_app.replies import TrainAnswer, evaluation_means
from server_app.roster import Member, Roster
from server_app.run_log import say

MOST_ABANDONED = 3  # rounds in a row
HELLO_SHARE = 0.25  # of a round's time, at most, for a node that was just greeted

Line = dict[str, Any]


@dataclass(frozen=True)
class Round:
    """What one exchange brought: usable answers by partition, and what was dropped."""

    asked: tuple[str, ...]
    orders: Mapping[Member, Order]
    answers: Mapping[Member, TrainAnswer]
    dropped: tuple[Mapping[str, Any], ...]
    bytes_down: int
    bytes_up: int

    @property
    def replies(self) -> list[Reply]:
        return [answer.reply for answer in self.answers.values() if answer.reply is not None]

    @property
    def sums(self) -> list[Sums]:
        return [answer.sums for answer in self.answers.values() if answer.sums]

    def answered(self) -> list[str]:
        """Clients whose update counts."""
        return [name for member in self.answers for name in self.orders[member].clients]


OnRound = Callable[[Progress, Progress, Line | None], None]
"""Called after a round with the progress before and after it, and the line that became whole."""


def run_rounds(
    training: Training, roster: Roster, progress: Progress, on_round: OnRound
) -> tuple[Roster, Progress]:
    """Rounds until the settings' number is reached. Raises RoundsAbandonedError."""
    while progress.server.round < training.settings.federation.rounds:
        started = time.monotonic()
        roster, outcomes = _until_enough(training, roster, progress)
        before = progress
        progress, whole = _advance(training, roster, progress, outcomes, started)
        on_round(before, progress, whole)
    return roster, progress


def complete(line: Line, means: Mapping[str, float] | None) -> Line:
    """A round's line with the evaluation of the model after it."""
    return {**line, **(means or {})}


def better(
    best: Mapping[str, Any] | None,
    round_: int,
    means: Mapping[str, float] | None,
    users: int,
    selected_by: str,
) -> Mapping[str, Any] | None:
    """The best round so far; rounds in which fewer than ``users`` were evaluated do not count."""
    if round_ == 0 or not means or means["valid/users"] < users:
        return best
    if best is not None and best["metrics"][selected_by] >= means[selected_by]:
        return best
    return {"round": round_, "metrics": dict(means)}


def compared(
    training: Training, roster: Roster, progress: Progress, means: Mapping[str, float] | None
) -> Progress:
    """The progress with ``means``, the evaluation of its model; of round 0 nothing is known."""
    users = users_to_evaluate(training.settings, roster)
    best = better(progress.best, progress.server.round, means, users, training.selected_by)
    if best == progress.best:
        return progress
    served = replace(progress.server, slots={}) if training.serves_best else None
    return replace(progress, best=best, served=served)


def users_to_evaluate(settings: Settings, roster: Roster) -> int:
    """How many a round must evaluate to be compared with others; 0 where it evaluates a sample."""
    return roster.users if settings.run.evaluate_clients == "all" else 0


def _until_enough(
    training: Training, roster: Roster, progress: Progress
) -> tuple[Roster, list[Round]]:
    """Repeats a round until enough clients answered it; all attempts, the good one last."""
    outcomes: list[Round] = []
    needed = training.settings.federation.min_clients
    while len(outcomes) < MOST_ABANDONED:
        deadline = time.monotonic() + training.settings.federation.round_timeout
        roster = _newcomers(training, roster)
        outcome = _exchange(training, roster, progress, deadline)
        outcomes.append(outcome)
        for drop in outcome.dropped:
            say(f"{training.name}  dropped node {drop['node']}: {drop['reason']}")
        enough = min(needed, len(outcome.asked))
        if len(outcome.answered()) >= max(1, enough):
            return roster, outcomes
        say(f"{training.name}  round abandoned: {len(outcome.answered())} clients, {needed} needed")
    raise RoundsAbandonedError(
        f"round {progress.server.round + 1} of {training.name} was abandoned {MOST_ABANDONED} "
        f"times: fewer than {needed} clients (federation.min-clients) gave a usable answer. "
        f"Last reasons: {reasons_of(outcomes[-1].dropped)}. Fix the nodes, then continue with "
        f"run.resume = {training.run!r}."
    )


def _newcomers(training: Training, roster: Roster) -> Roster:
    share = HELLO_SHARE * training.settings.federation.round_timeout
    patience = min(PATIENCE_SECONDS, share)
    after = join(training.grid, roster, training.hello, patience=patience)
    for node, reason in newly_refused(roster, after).items():
        say(f"node {node} cannot take part: {reason}")
    for name in sorted(str(member.label) for member in set(after.members) - set(roster.members)):
        say(f"node {name} joined")
    return after


def _exchange(training: Training, roster: Roster, progress: Progress, deadline: float) -> Round:
    federation, round_ = training.settings.federation, progress.server.round + 1
    seed = training.settings.run.seed
    asked = sample_clients(roster.clients, federation.participation, seed, round_)
    evaluate = progress.server.round % training.settings.run.evaluate_every == 0
    everybody = evaluate and training.settings.run.evaluate_clients == "all"
    orders = {}
    for member in roster.members:
        clients = tuple(name for name in asked if name in member.clients)
        if clients or everybody:
            concerned = member.clients if everybody else clients
            parts = {"clients": clients, "evaluate": evaluate}
            orders[member] = order_of(training, progress, concerned, **parts)
    result = send(training, TRAIN, orders, progress, deadline - time.monotonic())
    answers, dropped = read_answers(training, result, orders, progress.server.params)
    return Round(asked, orders, answers, tuple(dropped), result.bytes_down, result.bytes_up)


def _advance(
    training: Training,
    roster: Roster,
    progress: Progress,
    outcomes: Sequence[Round],
    started: float,
) -> tuple[Progress, Line | None]:
    """The progress after a round, and the line of the round before it, now whole."""
    outcome, round_ = outcomes[-1], progress.server.round + 1
    merged = merge_replies(outcome.replies)
    server = training.algorithm.server_update(progress.server, merged)
    means = evaluation_means(outcome.sums) if outcome.sums else None
    pending = progress.pending
    if pending is None and round_ == 1:
        pending = {"algorithm": training.name, "round": 0, "seconds": 0.0}
    line = _line(training, round_, merged, outcomes, time.monotonic() - started)
    return (
        replace(
            compared(training, roster, progress, means),
            server=server,
            last_rounds={**progress.last_rounds, **dict.fromkeys(outcome.answered(), round_)},
            pending=line,
            bytes_down=progress.bytes_down + line["bytes-down"],
            bytes_up=progress.bytes_up + line["bytes-up"],
            seconds=progress.seconds + line["seconds"],
        ),
        complete(dict(pending), means) if pending is not None else None,
    )


def _line(
    training: Training, round_: int, merged: Reply, outcomes: Sequence[Round], seconds: float
) -> Line:
    outcome = outcomes[-1]
    answers = outcome.answers.values()
    dropped = [drop for attempt in outcomes for drop in attempt.dropped]
    return round_line(
        training.name,
        round_,
        merged,
        participation=Participation(
            len(outcome.asked), len(outcome.answered()), dropped, len(outcomes) - 1
        ),
        traffic=Traffic(
            down=sum(attempt.bytes_down for attempt in outcomes),
            up=sum(attempt.bytes_up for attempt in outcomes),
        ),
        cost=Cost(
            seconds=seconds,
            node_seconds=max(answer.seconds for answer in answers),
            peak_memory=max(answer.peak_memory for answer in answers),
        ),
    )
