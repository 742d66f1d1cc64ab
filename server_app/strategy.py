"""A round on the server, top to bottom: one Flower strategy for every federated algorithm.

The steps of :meth:`PersonalizedStrategy.run_round_with_retries`, in their order:

    admit late nodes     who may take part (:mod:`server_app.membership`)
    choose clients       by names, seed and round alone, whichever nodes host them
    configure_train      an instruction for each node that hosts one of them
    exchange             messages out, replies in, until the deadline (:mod:`server_app.messaging`)
    validate replies     each alone; an invalid one is dropped (:mod:`server_app.replies`)
    aggregate_train      the mean of the others, and the algorithm's ``server.update``
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
from pfsr_core.runs.results import Cost, Participation, Traffic, round_line, with_metrics
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

RoundLine = dict[str, Any]
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
        return [
            client_name
            for member in self.answers
            for client_name in self.instructions[member].clients
        ]


class PersonalizedStrategy(Strategy):
    """The rounds of one algorithm, whose state is ``roster`` and ``progress``.

    Attributes:
        training: the algorithm and its run.
        roster: the nodes that take part; late ones are admitted before each round.
        progress: what a run continues from, as the checkpoint holds it.
        last_evaluation: means of the model after the last round, where they were asked for.
    """

    def __init__(self, training: Training, roster: Roster, progress: Progress) -> None:
        """Continues ``training`` from ``progress`` with the nodes of ``roster``."""
        self.training = training
        self.roster = roster
        self.progress = progress
        self.last_evaluation: Mapping[str, float] | None = None
        self._attempts: list[Attempt] = []  # at the round in progress
        self._sent = Sent((), {}, ())
        self._started = 0.0  # of the round in progress, on the monotonic clock
        self._patience = 0.0  # seconds that the last exchange waited for replies
        self._completed: RoundLine | None = None  # the round before, with its evaluation

    def summary(self) -> None:
        """Logs what is about to run."""
        federation_settings = self.training.settings.federation
        rounds_done = self.progress.server.round
        logger.debug(
            f"{self.training.name}  rounds {rounds_done + 1} to {federation_settings.rounds}: "
            f"{federation_settings.participation:g} of {len(self.roster.clients)} clients in each"
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
            shared_arrays, client_metrics = self.run_round_with_retries(
                grid, result.arrays, timeout, train_config or ConfigRecord()
            )
            round_number = self.progress.server.round
            result.arrays = shared_arrays
            result.train_metrics_clientapp[round_number] = client_metrics
            server_evaluation = evaluate_fn(round_number, shared_arrays) if evaluate_fn else None
            if server_evaluation is not None:
                result.evaluate_metrics_serverapp[round_number] = server_evaluation
        if self.training.serves_best:
            result.evaluate_metrics_clientapp[num_rounds] = self.evaluate_last_round(
                grid, result.arrays, timeout, evaluate_config or ConfigRecord()
            )
        return result

    def run_round_with_retries(
        self,
        grid: Grid,
        shared_arrays: ArrayRecord,
        exchange_timeout: float,
        round_config: ConfigRecord,
    ) -> tuple[ArrayRecord, MetricRecord]:
        """One round, tried again until enough clients answered it.

        Returns:
            The shared parameters after it, and the sums that its clients reported.

        Raises:
            RoundsAbandonedError: not enough answered in any of MAX_ATTEMPTS attempts.
        """
        previous_progress, round_number = self.progress, self.progress.server.round + 1
        self._attempts, self._started = [], time.monotonic()
        while len(self._attempts) < MAX_ATTEMPTS:
            deadline = time.monotonic() + exchange_timeout
            self._admit_late_nodes(grid, exchange_timeout)
            messages = self.configure_train(round_number, shared_arrays, round_config, grid)
            replies = self._exchange(grid, messages, deadline)
            new_arrays, client_metrics = self.aggregate_train(round_number, replies)
            if new_arrays is not None and client_metrics is not None:
                self._save_round(previous_progress)
                return new_arrays, client_metrics
        clients_needed = self.training.settings.federation.min_clients
        raise RoundsAbandonedError(
            f"round {round_number} of {self.training.name} was abandoned {MAX_ATTEMPTS} "
            f"times: fewer than {clients_needed} clients (federation.min-clients) gave a usable "
            f"answer. Last reasons: {format_reasons(self._attempts[-1].dropped)}. Fix the nodes, "
            f"then continue with run.resume = {self.training.log.run_id!r}."
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
        run_settings = self.training.settings.run
        asked_clients = self.choose_clients(server_round)
        evaluates_model = self.progress.server.round % run_settings.evaluate_every == 0
        evaluates_all = evaluates_model and run_settings.evaluate_clients == "all"
        instructions = {}
        for member in self.roster.members:
            client_names = tuple(
                client_name for client_name in asked_clients if client_name in member.clients
            )
            if client_names or evaluates_all:
                concerned_names = member.clients if evaluates_all else client_names
                instructions[member] = make_instruction(
                    self.training,
                    self.progress,
                    concerned_names,
                    client_names=client_names,
                    evaluate=evaluates_model,
                )
        messages = make_messages(grid, TRAIN, instructions, arrays, config)
        self._sent = Sent(asked_clients, instructions, messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Validates the replies; calls ``server.update`` with the mean of the usable ones.

        Returns:
            The shared parameters after the round and the sums that its clients reported;
            (None, None) where too few clients answered: nothing has changed then.
        """
        attempt = self._validate_replies(replies)
        self._attempts.append(attempt)
        for dropped_reply in attempt.dropped:
            logger.info(
                f"{self.training.name}  dropped node {dropped_reply['node']}: "
                f"{dropped_reply['reason']}"
            )
        num_answered = len(attempt.answered())
        clients_needed = self.training.settings.federation.min_clients
        if num_answered < max(1, min(clients_needed, len(attempt.asked))):
            logger.info(
                f"{self.training.name}  round abandoned: {num_answered} clients, "
                f"{clients_needed} needed"
            )
            return None, None
        merged_reply = merge_replies(attempt.replies)
        server_state = self.training.algorithm.server.update(self.progress.server, merged_reply)
        self._apply_round(server_round, server_state, merged_reply)
        return to_arrays(server_state), MetricRecord(
            {**merged_reply.metrics, "weight": merged_reply.weight}
        )

    def evaluate_last_round(
        self,
        grid: Grid,
        shared_arrays: ArrayRecord,
        exchange_timeout: float,
        evaluate_config: ConfigRecord,
    ) -> MetricRecord:
        """Compares the last round with the best one before it, where the best one is served.

        Costs an exchange of its own; elsewhere these figures come with
        :func:`server_app.final_round.finish`.

        Raises:
            RoundsAbandonedError: no node answers it.
        """
        previous_progress, deadline = self.progress, time.monotonic() + exchange_timeout
        messages = self.configure_evaluate(
            self.progress.server.round, shared_arrays, evaluate_config, grid
        )
        replies = self._exchange(grid, messages, deadline)
        mean_metrics = self.aggregate_evaluate(self.progress.server.round, replies)
        if mean_metrics is None:
            drop_reasons = format_reasons(self._attempts[-1].dropped)
            raise RoundsAbandonedError(f"no node evaluated {self.training.name}: {drop_reasons}")
        if self.progress.best != previous_progress.best:
            keep_model(self.training, "best", self.progress.server)
        return mean_metrics

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
        attempt = self._validate_replies(replies)
        self._attempts.append(attempt)
        if not attempt.answers:
            return None
        mean_metrics = evaluation_means(attempt.sums)
        self.last_evaluation = mean_metrics
        self.progress = update_best(self.training, self.roster, self.progress, mean_metrics)
        return MetricRecord(dict(mean_metrics))

    def _admit_late_nodes(self, grid: Grid, exchange_timeout: float) -> None:
        """Asks new nodes to register, and admits those that have answered."""
        previous_roster = self.roster
        patience = min(PATIENCE_SECONDS, REGISTRATION_SHARE * exchange_timeout)
        self.roster = admit_nodes(
            grid, previous_roster, self.training.registration, patience_seconds=patience
        )
        for node_id, reason in newly_refused(previous_roster, self.roster).items():
            logger.info(f"node {node_id} cannot take part: {reason}")
        new_members = set(self.roster.members) - set(previous_roster.members)
        for node_label in sorted(str(member.label) for member in new_members):
            logger.info(f"node {node_label} joined")

    def _exchange(self, grid: Grid, messages: Iterable[Message], deadline: float) -> list[Message]:
        self._patience = deadline - time.monotonic()
        return send_and_receive(grid, list(messages), self._patience)

    def _validate_replies(self, replies: Iterable[Message]) -> Attempt:
        """The usable answers to what was sent, and why the others are dropped."""
        sent_round, replies = self._sent, list(replies)
        federation_settings, algorithm = self.training.settings.federation, self.training.algorithm
        round_exchange = match_replies(sent_round.messages, replies, self._patience)
        usable_answers: dict[Member, TrainAnswer] = {}
        dropped_replies: list[Mapping[str, Any]] = []
        for member, instruction in sent_round.instructions.items():
            expected = Expected(
                algorithm.client.reply_shapes,
                instruction.clients,
                instruction.evaluate,
                self.progress.server.params,
                federation_settings.max_weight,
                federation_settings.max_change,
            )
            try:
                usable_answers[member] = read_train(
                    content_of(round_exchange, member.node), expected
                )
            except ProtocolError as error:
                dropped_replies.append(drop_of(member, error, len(instruction.clients)))
        bytes_down, bytes_up = count_bytes(sent_round.messages), count_bytes(replies)
        return Attempt(
            sent_round.asked,
            sent_round.instructions,
            usable_answers,
            tuple(dropped_replies),
            bytes_down,
            bytes_up,
        )

    def _apply_round(
        self, round_number: int, server_state: ServerState, merged_reply: Reply
    ) -> None:
        """Progress after the round, whose replies evaluated the model before it."""
        attempt, progress = self._attempts[-1], self.progress
        mean_metrics = evaluation_means(attempt.sums) if attempt.sums else None
        pending_line = progress.pending
        if pending_line is None and round_number == 1:
            pending_line = {"algorithm": self.training.name, "round": 0, "seconds": 0.0}
        self._completed = (
            with_metrics(pending_line, mean_metrics) if pending_line is not None else None
        )
        round_seconds = time.monotonic() - self._started
        new_line = _line(self.training, round_number, merged_reply, self._attempts, round_seconds)
        self.progress = replace(
            update_best(self.training, self.roster, progress, mean_metrics),
            server=server_state,
            last_rounds={**progress.last_rounds, **dict.fromkeys(attempt.answered(), round_number)},
            pending=new_line,
            bytes_down=progress.bytes_down + new_line["bytes-down"],
            bytes_up=progress.bytes_up + new_line["bytes-up"],
            seconds=progress.seconds + new_line["seconds"],
        )

    def _save_round(self, previous_progress: Progress) -> None:
        """Writes what the round changed: metrics line, best model, checkpoint; logs progress."""
        training, progress, completed_line = self.training, self.progress, self._completed
        if completed_line is not None:
            training.log.add_round(completed_line)
        if progress.best != previous_progress.best:
            keep_model(training, "best", previous_progress.server)
        checkpoint_directory = training.log.path(f"checkpoint-{training.name}")
        save_checkpoint(checkpoint_directory, progress, training.fingerprint)
        num_rounds, rounds_done = training.settings.federation.rounds, progress.server.round
        seconds_left = progress.seconds / rounds_done * (num_rounds - rounds_done)
        round_metrics = {
            metric_name: metric_value
            for metric_name, metric_value in (completed_line or {}).items()
            if "/" in metric_name
        }
        logger.info(
            progress_line({**(progress.pending or {}), **round_metrics}, num_rounds, seconds_left)
        )


def make_instruction(
    training: Training,
    progress: Progress,
    concerned_names: Iterable[str],
    *,
    client_names: tuple[str, ...] = (),
    evaluate: bool = False,
    finetune: bool = False,
    install: bool = False,
) -> Instruction:
    """What a node is asked to do with its clients.

    Args:
        training: the algorithm and its run.
        progress: where it stands; the instruction is for the round after it.
        concerned_names: the clients whose private states are read.
        client_names: those of them to train, or to finish with.
        evaluate: see :class:`Instruction`, as for the next two.
        finetune: in the last exchange.
        install: in the last exchange.
    """
    return Instruction(
        run=training.log.run_id,
        algorithm=training.name,
        round=progress.server.round + 1,
        last_rounds={
            client_name: progress.last_rounds[client_name]
            for client_name in concerned_names
            if client_name in progress.last_rounds
        },
        clients=client_names,
        signals=progress.server.broadcast().signals,
        evaluate=evaluate,
        finetune=finetune,
        install=install,
    )


def make_messages(
    grid: Grid,
    message_kind: str,
    instructions: Mapping[Member, Instruction],
    shared_arrays: ArrayRecord,
    extra_config: ConfigRecord,
) -> list[Message]:
    """One message for each connected node; ``extra_config`` is added to every instruction."""
    connected_nodes = set(grid.get_node_ids())
    return [
        Message(
            request({**extra_config, **instruction_to_config(instruction)}, shared_arrays),
            member.node,
            message_kind,
            group_id=str(instruction.round),
        )
        for member, instruction in instructions.items()
        if member.node in connected_nodes
    ]


def to_arrays(server_state: ServerState) -> ArrayRecord:
    """The shared parameters as they travel: one flat float32 vector."""
    return ArrayRecord({SHARED: Array(pack(server_state.broadcast().params))})


def select_best_round(
    best_round: Mapping[str, Any] | None,
    round_number: int,
    mean_metrics: Mapping[str, float] | None,
    min_users: int,
    selected_by: str,
) -> Mapping[str, Any] | None:
    """The best round so far; a round that evaluated fewer than ``min_users`` does not count."""
    if round_number == 0 or not mean_metrics or mean_metrics["valid/users"] < min_users:
        return best_round
    if best_round is not None and best_round["metrics"][selected_by] >= mean_metrics[selected_by]:
        return best_round
    return {"round": round_number, "metrics": dict(mean_metrics)}


def update_best(
    training: Training, roster: Roster, progress: Progress, mean_metrics: Mapping[str, float] | None
) -> Progress:
    """The progress with the evaluation of its model; round 0 is never the best."""
    evaluates_all = training.settings.run.evaluate_clients == "all"
    min_users = roster.users if evaluates_all else 0  # a sample is compared, whatever its size
    round_number = progress.server.round
    best_round = select_best_round(
        progress.best, round_number, mean_metrics, min_users, training.selected_by
    )
    if best_round == progress.best:
        return progress
    served_state = replace(progress.server, slots={}) if training.serves_best else None
    return replace(progress, best=best_round, served=served_state)


def keep_model(training: Training, model_kind: str, server_state: ServerState) -> None:
    """Writes the shared model as ``best`` or ``last``; of a compared algorithm with its name."""
    model_config = {"round": server_state.round, "settings": flat_settings(training.settings)}
    model_name = model_kind if training.is_main else f"{model_kind}-{training.name}"
    write_model(training.log, model_name, server_state.params, model_config, training.item_ids)


def _line(
    training: Training,
    round_number: int,
    merged_reply: Reply,
    round_attempts: Sequence[Attempt],
    round_seconds: float,
) -> RoundLine:
    last_attempt = round_attempts[-1]
    usable_answers = last_attempt.answers.values()
    dropped_replies = [
        dropped_reply for attempt in round_attempts for dropped_reply in attempt.dropped
    ]
    return round_line(
        training.name,
        round_number,
        merged_reply,
        participation=Participation(
            len(last_attempt.asked),
            len(last_attempt.answered()),
            dropped_replies,
            len(round_attempts) - 1,
        ),
        traffic=Traffic(
            down=sum(attempt.bytes_down for attempt in round_attempts),
            up=sum(attempt.bytes_up for attempt in round_attempts),
        ),
        cost=Cost(
            seconds=round_seconds,
            node_seconds=max(answer.seconds for answer in usable_answers),
            peak_memory=max(answer.peak_memory for answer in usable_answers),
        ),
    )
