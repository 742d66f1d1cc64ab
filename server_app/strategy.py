"""The round loop: who is asked, what is sent, which answers count. The arithmetic is the core's.

One round is one exchange. Its answers carry the evaluation of what was sent, so a round's metrics
arrive with the round after it, and those of the last round with :func:`finish`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid

from pfsr_core.federated import FULL, FederatedAlgorithm, Reply, Sums, merge_replies, merge_sums
from pfsr_core.packing import pack
from pfsr_core.params import Params
from pfsr_core.personal_evaluation import shows_full
from pfsr_core.protocol import (
    FINETUNED,
    FINISH,
    OUTCOME,
    TRAIN,
    Order,
    ProtocolError,
    order_to_config,
    under,
)
from pfsr_core.run_files import SELECTORS
from pfsr_core.settings import Settings
from pfsr_core.simulation import sample_clients
from server_app.checkpoints import Progress
from server_app.exchange import Exchange, exchange, request
from server_app.joining import PATIENCE_SECONDS, join, newly_refused
from server_app.replies import (
    Expected,
    TrainAnswer,
    client_rows,
    evaluation_means,
    evaluation_sums,
    read_finish,
    read_train,
)
from server_app.run_log import say
from server_app.sampling import Member, Roster

MOST_ABANDONED = 3  # rounds in a row
HELLO_SHARE = 0.25  # of a round's time, at most, for a node that was just greeted

Line = dict[str, Any]


class RoundsAbandonedError(RuntimeError):
    """Too few usable answers, several times in a row."""


@dataclass(frozen=True)
class Training:
    """One algorithm's run over a federation."""

    grid: Grid
    run: str
    settings: Settings
    algorithm: FederatedAlgorithm
    hello: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.settings.algorithm.name

    @property
    def selected_by(self) -> str:
        """The figure that chooses a round."""
        return SELECTORS[self.settings.run.selected_by]

    @property
    def serves_best(self) -> bool:
        """Whether the model of the best round is finetuned and served, not that of the last."""
        return self.settings.run.may_serve_best and self.algorithm.states_fit_any_round


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


@dataclass(frozen=True)
class Finish:
    """The figures of the model after the last round, and of what was served.

    ``finetuned`` is None where nothing was finetuned; ``outcome`` is empty then. ``views``: of
    those that are looked at after the last round alone.
    """

    last: Mapping[str, float]
    finetuned: Mapping[str, float] | None
    views: Mapping[str, Mapping[str, float]]
    outcome: Sums
    clients: Sequence[Mapping[str, Any]]
    dropped: Sequence[Mapping[str, Any]]


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


def evaluate_last(
    training: Training, roster: Roster, progress: Progress
) -> tuple[Progress, Mapping[str, float] | None]:
    """Compares the last round with the best one before it, where the best one is served.

    Costs an exchange of its own; elsewhere the figures, here None, come with :func:`finish`. Raises
    RoundsAbandonedError when no node answers it.
    """
    if not training.serves_best:
        return progress, None
    orders = {m: _order(training, progress, m.clients, evaluate=True) for m in roster.members}
    timeout = training.settings.federation.round_timeout
    result = _send(training, TRAIN, orders, progress, timeout)
    answers, dropped = _read_train(training, result, orders, progress.server.params)
    if not answers:
        raise RoundsAbandonedError(f"no node evaluated {training.name}: {_reasons(dropped)}")
    means = evaluation_means([answer.sums for answer in answers.values()])
    return _compared(training, roster, progress, means), means


def finish(training: Training, roster: Roster, progress: Progress, *, install: bool) -> Finish:
    """The last exchange. Raises RoundsAbandonedError when no node answers it."""
    if training.serves_best and progress.served is not None:
        progress = replace(progress, server=progress.served)
    orders = {}
    for member in roster.members:
        clients = tuple(_finishing(training, progress, member))
        if clients:
            parts = {"finetune": training.settings.algorithm.finetune, "install": install}
            orders[member] = _order(training, progress, clients, clients=clients, **parts)
    timeout = training.settings.federation.round_timeout
    result = _send(training, FINISH, orders, progress, timeout)
    return _read_finish(training, result, orders)


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


def _compared(
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
        f"Last reasons: {_reasons(outcomes[-1].dropped)}. Fix the nodes, then continue with "
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
            orders[member] = _order(training, progress, concerned, **parts)
    result = _send(training, TRAIN, orders, progress, deadline - time.monotonic())
    answers, dropped = _read_train(training, result, orders, progress.server.params)
    return Round(asked, orders, answers, tuple(dropped), result.bytes_down, result.bytes_up)


def _order(training: Training, progress: Progress, concerned: Iterable[str], **parts: Any) -> Order:
    known = progress.last_rounds
    return Order(
        run=training.run,
        algorithm=training.name,
        round=progress.server.round + 1,
        last_rounds={name: known[name] for name in concerned if name in known},
        signals=progress.server.broadcast().signals,
        **parts,
    )


def _send(
    training: Training,
    kind: str,
    orders: Mapping[Member, Order],
    progress: Progress,
    timeout: float,
) -> Exchange:
    """Sends to the nodes that are connected; the others count as silent."""
    flat = pack(progress.server.broadcast().params)
    connected = set(training.grid.get_node_ids())
    contents: dict[int, RecordDict] = {
        member.node: request(order_to_config(order), flat)
        for member, order in orders.items()
        if member.node in connected
    }
    group = str(progress.server.round + 1)
    result = exchange(training.grid, kind, contents, timeout=timeout, group=group)
    gone = {m.node: "not connected" for m in orders if m.node not in connected}
    return replace(result, problems={**result.problems, **gone})


def _read_train(
    training: Training, result: Exchange, orders: Mapping[Member, Order], sent: Params
) -> tuple[dict[Member, TrainAnswer], list[Mapping[str, Any]]]:
    limits = training.settings.federation
    answers: dict[Member, TrainAnswer] = {}
    dropped: list[Mapping[str, Any]] = []
    for member, order in orders.items():
        expected = Expected(
            training.algorithm.reply_shapes,
            order.clients,
            order.evaluate,
            sent,
            limits.max_weight,
            limits.max_change,
        )
        try:
            answers[member] = read_train(_content(result, member), expected)
        except ProtocolError as error:
            dropped.append(_drop(member, error, len(order.clients)))
    return answers, dropped


def _content(result: Exchange, member: Member) -> RecordDict:
    if member.node not in result.answers:
        raise ProtocolError(result.problems[member.node])
    return result.answers[member.node]


def _drop(member: Member, reason: object, clients: int) -> Mapping[str, Any]:
    return {"node": member.label, "reason": str(reason), "clients": clients}


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
            _compared(training, roster, progress, means),
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
    outcome, sums = outcomes[-1], merged.metrics
    targets, clients = sums.get("train-targets", 0.0), sums.get("clients", 0.0)
    kept = {k.removeprefix("kept/"): v for k, v in sums.items() if k.startswith("kept/")}
    answers = outcome.answers.values()
    return {
        "algorithm": training.name,
        "round": round_,
        "seconds": round(seconds, 3),
        "train-loss": sums["train-loss"] / targets if targets else None,
        "asked": len(outcome.asked),
        "answered": len(outcome.answered()),
        "dropped": [drop for attempt in outcomes for drop in attempt.dropped],
        "abandoned": len(outcomes) - 1,
        "bytes-down": sum(attempt.bytes_down for attempt in outcomes),
        "bytes-up": sum(attempt.bytes_up for attempt in outcomes),
        "kept": {name: share / clients for name, share in kept.items() if clients},
        "norm-median": median(merged.norms),
        "node-seconds": round(max(answer.seconds for answer in answers), 3),
        "peak-memory": round(max(answer.peak_memory for answer in answers), 1),
    }


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
    full = shows_full(training.algorithm, training.settings)
    again = FINETUNED if finetunes or full else ""
    for member, order in orders.items():
        names = list(order.clients)
        try:
            metrics = read_finish(_content(result, member), len(names))
            parts = evaluation_sums(metrics), evaluation_sums(metrics, again)
            outcome = under(OUTCOME, metrics)
            listed = FINETUNED if finetunes else ""
            new_rows = list(client_rows(metrics, listed, names, training.algorithm.views))
        except ProtocolError as error:
            dropped.append(_drop(member, error, len(names)))
            continue
        last.append(parts[0])
        finetuned.append(parts[1])
        outcomes.append(outcome)
        rows += new_rows
    if not last:
        raise RoundsAbandonedError(f"no node finished {training.name}: {_reasons(dropped)}")
    after = evaluation_means(finetuned)
    return Finish(
        last=evaluation_means(last),
        finetuned=after if finetunes else None,
        views={FULL: after} if full else {},
        outcome=merge_sums(outcomes),
        clients=rows,
        dropped=dropped,
    )


def _reasons(dropped: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(f"node {drop['node']}: {drop['reason']}" for drop in dropped) or "none"
