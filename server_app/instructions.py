"""Orders to the nodes, and their answers: what a round and the last exchange have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid

from pfsr_core.assembly.settings import Settings
from pfsr_core.federated.algorithm import FederatedAlgorithm
from pfsr_core.federated.protocol import Order, ProtocolError, order_to_config
from pfsr_core.params import Params, pack
from pfsr_core.runs.files import SELECTORS
from server_app.checkpoints import Progress
from server_app.messaging import Exchange, exchange, request
from server_app.replies import Expected, TrainAnswer, read_train
from server_app.roster import Member


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
        return self.settings.run.may_serve_best and self.algorithm.client.states_fit_any_round


def order_of(
    training: Training, progress: Progress, concerned: Iterable[str], **parts: Any
) -> Order:
    """What a node is asked about the clients that are ``concerned``; ``parts`` say what."""
    known = progress.last_rounds
    return Order(
        run=training.run,
        algorithm=training.name,
        round=progress.server.round + 1,
        last_rounds={name: known[name] for name in concerned if name in known},
        signals=progress.server.broadcast().signals,
        **parts,
    )


def send(
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


def read_answers(
    training: Training, result: Exchange, orders: Mapping[Member, Order], sent: Params
) -> tuple[dict[Member, TrainAnswer], list[Mapping[str, Any]]]:
    """The usable answers, and why others were dropped."""
    limits = training.settings.federation
    answers: dict[Member, TrainAnswer] = {}
    dropped: list[Mapping[str, Any]] = []
    for member, order in orders.items():
        expected = Expected(
            training.algorithm.client.reply_shapes,
            order.clients,
            order.evaluate,
            sent,
            limits.max_weight,
            limits.max_change,
        )
        try:
            answers[member] = read_train(content_of(result, member), expected)
        except ProtocolError as error:
            dropped.append(drop_of(member, error, len(order.clients)))
    return answers, dropped


def content_of(result: Exchange, member: Member) -> RecordDict:
    """What the member answered. Raises ProtocolError when it did not."""
    if member.node not in result.answers:
        raise ProtocolError(result.problems[member.node])
    return result.answers[member.node]


def drop_of(member: Member, reason: object, clients: int) -> Mapping[str, Any]:
    """How the log says that an answer of so many clients was dropped."""
    return {"node": member.label, "reason": str(reason), "clients": clients}


def reasons_of(dropped: Sequence[Mapping[str, Any]]) -> str:
    """Why, node by node, as a sentence."""
    return "; ".join(f"node {drop['node']}: {drop['reason']}" for drop in dropped) or "none"
