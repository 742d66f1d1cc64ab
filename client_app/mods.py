"""The last gate: whatever the code before it does, only what the protocol names leaves the node.

It looks at the finished reply, so a mistake in an algorithm, which might put a private tensor among
the shared ones, ends in an error here and not on the wire.
"""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from client_app.messages import Limits
from pfsr_core.federated.protocol import METRICS, SHARED

LimitsOf = Callable[[Message, Context], Limits]


class GateError(RuntimeError):
    """A reply that holds more than may leave; it is not sent."""


def only_shared_leaves(
    limits_of: LimitsOf, record_names: tuple[str, ...] = (SHARED, METRICS)
) -> Callable[[Message, Context, ClientAppCallable], Message]:
    """A Flower mod that passes a reply only when it holds exactly what may leave the node.

    Args:
        limits_of: Gives the limits of the reply to a message.
        record_names: The records that the reply must have, no more and no less.

    Raises:
        GateError: When the mod is called and the reply holds anything else.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        limits = limits_of(message, context)
        reply = call_next(message, context)
        if reply.has_content():
            check_content(reply.content, limits, record_names)
        return reply

    return mod


def check_content(reply_content: RecordDict, limits: Limits, record_names: tuple[str, ...]) -> None:
    """Raises GateError when ``reply_content`` is not exactly what may leave."""
    if set(reply_content) != set(record_names):
        raise GateError(
            f"the reply has records {sorted(reply_content)}; only {sorted(record_names)} leave"
        )
    for record_name, array_record in reply_content.array_records.items():
        if record_name != SHARED or list(array_record) != [SHARED]:
            raise GateError(
                f"the reply has arrays {sorted(array_record)} in {record_name!r}; "
                f"only {SHARED} leaves"
            )
        array = array_record[SHARED]
        if array.dtype != "float32" or array.shape != (limits.values,):
            raise GateError(
                f"the shared array is {array.dtype} {tuple(array.shape)}; the shared names have "
                f"{limits.values} values of float32"
            )
    for record_name, metric_record in reply_content.metric_records.items():
        for metric_name, value in metric_record.items():
            if isinstance(value, list) and len(value) > limits.longest_list:
                raise GateError(
                    f"{record_name}: {metric_name} has {len(value)} values; "
                    f"at most {limits.longest_list} leave"
                )
