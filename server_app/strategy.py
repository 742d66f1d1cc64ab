"""A round on the server, top to bottom: one Flower strategy for every federated algorithm.

The steps of :meth:`PersonalizedStrategy.run_round_with_retries`, in their order:

    admit late nodes     who may take part (:mod:`server_app.membership`)
    choose clients       by names, seed and round alone, whichever nodes host them
    configure_train      an instruction for each node that hosts one of them
    exchange             messages out, replies in, until the deadline (:mod:`server_app.messaging`)
    judge replies        each alone; a bad one is dropped (:mod:`server_app.replies`)
    aggregate_train      the mean of the others, and the algorithm's ``server_update``
    save round           metrics line, best model, checkpoint (:mod:`server_app.checkpoints`)

A round is one exchange: its replies carry the evaluation of the model that was sent beside the
update of it. So the figures of a round arrive with the round after it, those of the last one with
:mod:`server_app.final_round`, and ``start`` is a loop of its own. The arithmetic is the core's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from pfsr_core.assembly.settings import Settings, flat_settings
from pfsr_core.federated.aggregation import merge_replies
from pfsr_core.federated.algorithm import FederatedAlgorithm, Reply, ServerState, Sums
from pfsr_core.federated.protocol import (
    SHARED,
    TRAIN,
    Instruction,
    ProtocolError,
    instruction_to_config,
)
from pfsr_core.federated.sampling import sample_clients
from pfsr_core.params import pack
from pfsr_core.runs.files import SELECTORS
from pfsr_core.runs.results import Cost, Participation, Traffic, round_line
from server_app.checkpoints import Progress, save_checkpoint
from server_app.membership import PATIENCE_SECONDS, admit_nodes, newly_refused
from server_app.messaging import count_bytes, match_replies, request, send_and_receive
from server_app.replies import (
    Expected,
    TrainAnswer,
    content_of,
    drop_of,
    evaluation_means,
    format_reasons,
    read_train,
)
from server_app.roster import Member, Roster
from server_app.run_log import RunLog, logger, progress_line, write_model

MAX_ATTEMPTS = 3  # at one round
REGISTRATION_SHARE = 0.25  # of a round's time, at most, for a node that was just asked to register

Line = dict[str, Any]
EvaluateOnServer = Callable[[int, ArrayRecord], MetricRecord | None]


class RoundsAbandonedError(RuntimeError):
    """Too few usable replies, several times in a row."""


@dataclass(frozen=True)
class Training:
    """One algorithm's run over a federation.

    Attributes:
        log: the run's directory, whose name is the id of the run.
        settings: those of the run, under the name of this algorithm.
        algorithm: what is computed.
        fingerprint: names model and data; a checkpoint of another one is refused.
        registration: what a node is asked that joins while rounds go on.
        item_ids: the items of a shared item table, else empty.
        is_main: whether its model is installed, as the settings' algorithm and none of run.compare.
    """

    log: RunLog
    settings: Settings
    algorithm: FederatedAlgorithm
    fingerprint: str
    registration: Mapping[str, Any]
    item_ids: tuple[str, ...] = ()
    is_main: bool = True

    @property
    def name(self) -> str:
        """The name of the algorithm."""
        return self.settings.algorithm.name

    @property
    def selected_by(self) -> str:
        """The figure that chooses a round."""
        return SELECTORS[self.settings.run.selected_by]

    @property
    def serves_best(self) -> bool:
        """Whether the model of the best round is finetuned and served, not that of the last."""
        return self.settings.run.may_serve_best and self.algorithm.client.states_fit_any_round


@dataclass(frozen=True)
class Sent:
    """What one attempt at a round asks: clients, an instruction for each node, and the messages.

    A node that is not connected has an instruction and no message.
    """

    asked: tuple[str, ...]
    instructions: Mapping[Member, Instruction]
    messages: Sequence[Message]


@dataclass(frozen=True)
class Attempt:
    """What one attempt at a round brought: usable answers by node, and what was dropped."""

    asked: tuple[str, ...]
    instructions: Mapping[Member, Instruction]
    answers: Mapping[Member, TrainAnswer]
    dropped: tuple[Mapping[str, Any], ...]
    bytes_down: int
    bytes_up: int

    @property
    def replies(self) -> list[Reply]:
        """The updates that are aggregated."""
        return [answer.reply for answer in self.answers.values() if answer.reply is not None]

    @property
    def sums(self) -> list[Sums]:
        """The evaluations of the model that was sent."""
        return [answer.sums for answer in self.answers.values() if answer.sums]

    def answered(self) -> list[str]:
        """Clients whose update counts."""
        return [name for member in self.answers for name in self.instructions[member].clients]


class PersonalizedStrategy(Strategy):
    """The rounds of one algorithm, whose state is ``roster`` and ``progress``.

    Attributes:
        training: the algorithm and its run.
        roster: the nodes that take part; late ones are admitted before each round.
        progress: what a run continues from, as the checkpoint holds it.
        last_evaluation: means of the model after the last round, where they were asked for.
    """

    def __init__(self, training: Training, roster: Roster, progress: Progress) -> None:
        self.training = training
        self.roster = roster
        self.progress = progress
        self.last_evaluation: Mapping[str, float] | None = None
        self._attempts: list[Attempt] = []  # at the round in progress
        self._sent = Sent((), {}, ())
        self._started = 0.0  # of the round in progress, on the monotonic clock
        self._patience = 0.0  # seconds that the last exchange waited for replies
        self._completed: Line | None = None  # the round before, with its evaluation

    def summary(self) -> None:
        """Logs what is about to run."""
        federation, done = self.training.settings.federation, self.progress.server.round
        logger.debug(
            f"{self.training.name}  rounds {done + 1} to {federation.rounds}: "
            f"{federation.participation:g} of {len(self.roster.clients)} clients in each"
        )

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateOnServer | None = None,
    ) -> Result:
        """Runs rounds until ``num_rounds`` are done, from where ``progress`` stands.

        Args:
            grid: the connection to the nodes.
            initial_arrays: the shared parameters to begin with, those of ``progress``.
            num_rounds: the number of the last round.
            timeout: seconds that an exchange may take.
            train_config: added to every instruction of a round.
            evaluate_config: added to the instructions of the evaluation after the last round.
            evaluate_fn: called with every round and its parameters, for what a server can evaluate.

        Raises:
            RoundsAbandonedError: too few usable replies, several times in a row.
        """
        self.summary()
        result = Result(arrays=initial_arrays)
        while self.progress.server.round < num_rounds:
            arrays, metrics = self.run_round_with_retries(
                grid, result.arrays, timeout, train_config or ConfigRecord()
            )
            round_ = self.progress.server.round
            result.arrays, result.train_metrics_clientapp[round_] = arrays, metrics
            evaluation = evaluate_fn(round_, arrays) if evaluate_fn else None
            if evaluation is not None:
                result.evaluate_metrics_serverapp[round_] = evaluation
        if self.training.serves_best:
            result.evaluate_metrics_clientapp[num_rounds] = self.evaluate_last_round(
                grid, result.arrays, timeout, evaluate_config or ConfigRecord()
            )
        return result

    def run_round_with_retries(
        self, grid: Grid, arrays: ArrayRecord, timeout: float, config: ConfigRecord
    ) -> tuple[ArrayRecord, MetricRecord]:
        """One round, tried again until enough clients answered it.

        Returns:
            The shared parameters after it, and the sums that its clients reported.

        Raises:
            RoundsAbandonedError: not enough answered in any of MAX_ATTEMPTS attempts.
        """
        before, round_ = self.progress, self.progress.server.round + 1
        self._attempts, self._started = [], time.monotonic()
        while len(self._attempts) < MAX_ATTEMPTS:
            deadline = time.monotonic() + timeout
            self._admit_late_nodes(grid, timeout)
            messages = self.configure_train(round_, arrays, config, grid)
            replies = self._exchange(grid, messages, deadline)
            new_arrays, metrics = self.aggregate_train(round_, replies)
            if new_arrays is not None and metrics is not None:
                self._save_round(before)
                return new_arrays, metrics
        needed = self.training.settings.federation.min_clients
        raise RoundsAbandonedError(
            f"round {round_} of {self.training.name} was abandoned {MAX_ATTEMPTS} "
            f"times: fewer than {needed} clients (federation.min-clients) gave a usable answer. "
            f"Last reasons: {format_reasons(self._attempts[-1].dropped)}. Fix the nodes, then "
            f"continue with run.resume = {self.training.log.run_id!r}."
        )

    def choose_clients(self, server_round: int) -> tuple[str, ...]:
        """The clients that train in a round: depends on their names, the seed and the round."""
        settings = self.training.settings
        participation, seed = settings.federation.participation, settings.run.seed
        return sample_clients(self.roster.clients, participation, seed, server_round)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """A message for each connected node that hosts a client to train or to evaluate."""
        run = self.training.settings.run
        asked = self.choose_clients(server_round)
        evaluate = self.progress.server.round % run.evaluate_every == 0
        everybody = evaluate and run.evaluate_clients == "all"
        instructions = {}
        for member in self.roster.members:
            clients = tuple(name for name in asked if name in member.clients)
            if clients or everybody:
                concerned = member.clients if everybody else clients
                instructions[member] = make_instruction(
                    self.training, self.progress, concerned, clients=clients, evaluate=evaluate
                )
        messages = make_messages(grid, TRAIN, instructions, arrays, config)
        self._sent = Sent(asked, instructions, messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Judges the replies; the algorithm's ``server_update`` with the mean of the usable ones.

        Returns:
            The shared parameters after the round and the sums that its clients reported;
            (None, None) where too few clients answered: nothing has changed then.
        """
        attempt = self._judge(replies)
        self._attempts.append(attempt)
        for drop in attempt.dropped:
            logger.info(f"{self.training.name}  dropped node {drop['node']}: {drop['reason']}")
        answered, needed = len(attempt.answered()), self.training.settings.federation.min_clients
        if answered < max(1, min(needed, len(attempt.asked))):
            logger.info(
                f"{self.training.name}  round abandoned: {answered} clients, {needed} needed"
            )
            return None, None
        merged = merge_replies(attempt.replies)
        server = self.training.algorithm.server.update(self.progress.server, merged)
        self._apply_round(server_round, server, merged)
        return to_arrays(server), MetricRecord({**merged.metrics, "weight": merged.weight})

    def evaluate_last_round(
        self, grid: Grid, arrays: ArrayRecord, timeout: float, config: ConfigRecord
    ) -> MetricRecord:
        """Compares the last round with the best one before it, where the best one is served.

        Costs an exchange of its own; elsewhere these figures come with
        :func:`server_app.final_round.finish`.

        Raises:
            RoundsAbandonedError: no node answers it.
        """
        before, deadline = self.progress, time.monotonic() + timeout
        messages = self.configure_evaluate(self.progress.server.round, arrays, config, grid)
        replies = self._exchange(grid, messages, deadline)
        metrics = self.aggregate_evaluate(self.progress.server.round, replies)
        if metrics is None:
            reasons = format_reasons(self._attempts[-1].dropped)
            raise RoundsAbandonedError(f"no node evaluated {self.training.name}: {reasons}")
        if self.progress.best != before.best:
            keep_model(self.training, "best", self.progress.server)
        return metrics

    def configure_evaluate(
        self,
        server_round: int,  # noqa: ARG002 - of Flower's interface; the round is in ``progress``
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> Iterable[Message]:
        """A message for each connected node, to evaluate all its clients and to train none.

        Its round is the one after ``server_round``, at which such an evaluation arrives.
        """
        instructions = {
            member: make_instruction(self.training, self.progress, member.clients, evaluate=True)
            for member in self.roster.members
        }
        messages = make_messages(grid, TRAIN, instructions, arrays, config)
        self._sent = Sent((), instructions, messages)
        return messages

    def aggregate_evaluate(
        self,
        server_round: int,  # noqa: ARG002 - of Flower's interface; the round is in ``progress``
        replies: Iterable[Message],
    ) -> MetricRecord | None:
        """Means over all users of the usable replies, which may make the last round the best.

        Returns:
            The means, or None where no reply is usable.
        """
        attempt = self._judge(replies)
        self._attempts.append(attempt)
        if not attempt.answers:
            return None
        means = evaluation_means(attempt.sums)
        self.last_evaluation = means
        self.progress = update_best(self.training, self.roster, self.progress, means)
        return MetricRecord(dict(means))

    def _admit_late_nodes(self, grid: Grid, timeout: float) -> None:
        """Asks new nodes to register, and takes those in that have answered."""
        before, patience = self.roster, min(PATIENCE_SECONDS, REGISTRATION_SHARE * timeout)
        self.roster = admit_nodes(grid, before, self.training.registration, patience=patience)
        for node, reason in newly_refused(before, self.roster).items():
            logger.info(f"node {node} cannot take part: {reason}")
        new = set(self.roster.members) - set(before.members)
        for name in sorted(str(member.label) for member in new):
            logger.info(f"node {name} joined")

    def _exchange(self, grid: Grid, messages: Iterable[Message], deadline: float) -> list[Message]:
        self._patience = deadline - time.monotonic()
        return send_and_receive(grid, list(messages), self._patience)

    def _judge(self, replies: Iterable[Message]) -> Attempt:
        """The usable answers to what was sent, and why the others are dropped."""
        sent, replies = self._sent, list(replies)
        limits, algorithm = self.training.settings.federation, self.training.algorithm
        received = match_replies(sent.messages, replies, self._patience)
        answers: dict[Member, TrainAnswer] = {}
        dropped: list[Mapping[str, Any]] = []
        for member, instruction in sent.instructions.items():
            expected = Expected(
                algorithm.client.reply_shapes,
                instruction.clients,
                instruction.evaluate,
                self.progress.server.params,
                limits.max_weight,
                limits.max_change,
            )
            try:
                answers[member] = read_train(content_of(received, member.node), expected)
            except ProtocolError as error:
                dropped.append(drop_of(member, error, len(instruction.clients)))
        down, up = count_bytes(sent.messages), count_bytes(replies)
        return Attempt(sent.asked, sent.instructions, answers, tuple(dropped), down, up)

    def _apply_round(self, round_: int, server: ServerState, merged: Reply) -> None:
        """Progress after the round, whose replies evaluated the model before it."""
        attempt, progress = self._attempts[-1], self.progress
        means = evaluation_means(attempt.sums) if attempt.sums else None
        pending = progress.pending
        if pending is None and round_ == 1:
            pending = {"algorithm": self.training.name, "round": 0, "seconds": 0.0}
        self._completed = with_metrics(pending, means) if pending is not None else None
        seconds = time.monotonic() - self._started
        line = _line(self.training, round_, merged, self._attempts, seconds)
        self.progress = replace(
            update_best(self.training, self.roster, progress, means),
            server=server,
            last_rounds={**progress.last_rounds, **dict.fromkeys(attempt.answered(), round_)},
            pending=line,
            bytes_down=progress.bytes_down + line["bytes-down"],
            bytes_up=progress.bytes_up + line["bytes-up"],
            seconds=progress.seconds + line["seconds"],
        )

    def _save_round(self, before: Progress) -> None:
        """Writes what the round changed: metrics line, best model, checkpoint; logs progress."""
        training, progress, completed = self.training, self.progress, self._completed
        if completed is not None:
            training.log.add_round(completed)
        if progress.best != before.best:
            keep_model(training, "best", before.server)
        directory = training.log.path(f"checkpoint-{training.name}")
        save_checkpoint(directory, progress, training.fingerprint)
        rounds, done = training.settings.federation.rounds, progress.server.round
        left = progress.seconds / done * (rounds - done)
        figures = {name: value for name, value in (completed or {}).items() if "/" in name}
        logger.info(progress_line({**(progress.pending or {}), **figures}, rounds, left))


def make_instruction(
    training: Training,
    progress: Progress,
    concerned: Iterable[str],
    *,
    clients: tuple[str, ...] = (),
    evaluate: bool = False,
    finetune: bool = False,
    install: bool = False,
) -> Instruction:
    """What a node is asked to do with its clients.

    Args:
        training: the algorithm and its run.
        progress: where it stands; the instruction is for the round after it.
        concerned: the clients whose private states are read.
        clients: those of them to train, or to finish with.
        evaluate: see :class:`Instruction`, as for the next two.
        finetune: in the last exchange.
        install: in the last exchange.
    """
    known = progress.last_rounds
    return Instruction(
        run=training.log.run_id,
        algorithm=training.name,
        round=progress.server.round + 1,
        last_rounds={name: known[name] for name in concerned if name in known},
        clients=clients,
        signals=progress.server.broadcast().signals,
        evaluate=evaluate,
        finetune=finetune,
        install=install,
    )


def make_messages(
    grid: Grid,
    kind: str,
    instructions: Mapping[Member, Instruction],
    arrays: ArrayRecord,
    config: ConfigRecord,
) -> list[Message]:
    """One message for each node that is connected; ``config`` is added to every instruction."""
    connected = set(grid.get_node_ids())
    return [
        Message(
            request({**config, **instruction_to_config(instruction)}, arrays),
            member.node,
            kind,
            group_id=str(instruction.round),
        )
        for member, instruction in instructions.items()
        if member.node in connected
    ]


def to_arrays(server: ServerState) -> ArrayRecord:
    """The shared parameters as they travel: one flat float32 vector."""
    return ArrayRecord({SHARED: Array(pack(server.broadcast().params))})


def with_metrics(line: Mapping[str, Any], means: Mapping[str, float] | None) -> Line:
    """A round's line with the evaluation of the model after it."""
    return {**line, **(means or {})}


def select_best_round(
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


def update_best(
    training: Training, roster: Roster, progress: Progress, means: Mapping[str, float] | None
) -> Progress:
    """The progress with ``means``, the evaluation of its model; of round 0 nothing is known."""
    everybody = training.settings.run.evaluate_clients == "all"
    users = roster.users if everybody else 0  # a sample is compared, whatever its size
    round_ = progress.server.round
    best = select_best_round(progress.best, round_, means, users, training.selected_by)
    if best == progress.best:
        return progress
    served = replace(progress.server, slots={}) if training.serves_best else None
    return replace(progress, best=best, served=served)


def keep_model(training: Training, kind: str, server: ServerState) -> None:
    """Writes the shared model as ``best`` or ``last``; of a compared algorithm with its name."""
    facts = {"round": server.round, "settings": flat_settings(training.settings)}
    name = kind if training.is_main else f"{kind}-{training.name}"
    write_model(training.log, name, server.params, facts, training.item_ids)


def _line(
    training: Training, round_: int, merged: Reply, outcomes: Sequence[Attempt], seconds: float
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
