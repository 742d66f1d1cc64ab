"""The last gate: whatever the code before it does, only what the protocol names leaves the node.

It looks at the finished reply, so a mistake in an algorithm, which might put a private tensor among
the shared ones, ends in an error here and not on the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from client_app.messages import Limits
from pfsr_core.federated.protocol import METRICS, SHARED

LimitsOf = Callable[[Message, Context], Limits]


class GateError(RuntimeError):
    """A reply that holds more than may leave; it is not sent."""


def only_shared_leaves(
    limits_of: LimitsOf, records: tuple[str, ...] = (SHARED, METRICS)
) -> Callable[[Message, Context, ClientAppCallable], Message]:
    """A mod that lets a reply pass when it holds ``records`` and an array of the right size."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        limits = limits_of(message, context)
        reply = call_next(message, context)
        if reply.has_content():
            check_content(reply.content, limits, records)
        return reply

    return mod


def check_content(content: RecordDict, limits: Limits, records: tuple[str, ...]) -> None:
    """Raises GateError when ``content`` is not exactly what may leave."""
    if set(content) != set(records):
        raise GateError(f"the reply has records {sorted(content)}; only {sorted(records)} leave")
    for name, record in content.array_records.items():
        _check_arrays(name, record, limits.values)
    for name, metrics in content.metric_records.items():
        _check_lists(name, metrics, limits.longest_list)


def _check_arrays(name: str, record: ArrayRecord, values: int) -> None:
    if name != SHARED or list(record) != [SHARED]:
        raise GateError(f"the reply has arrays {sorted(record)} in {name!r}; only {SHARED} leaves")
    array = record[SHARED]
    if array.dtype != "float32" or array.shape != (values,):
        raise GateError(
            f"the shared array is {array.dtype} {tuple(array.shape)}; the shared names have "
            f"{values} values of float32"
        )


def _check_lists(name: str, metrics: Mapping[str, object], longest: int) -> None:
    for key, value in metrics.items():
        if isinstance(value, list) and len(value) > longest:
            raise GateError(f"{name}: {key} has {len(value)} values; at most {longest} leave")
