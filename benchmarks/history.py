"""An answer after one new interaction: from a memory, and by reading the history again.

One user, scores of a catalogue included. "tokens" reads what is recent and learned tokens in place
of the rest, with attention; "state" takes one step from a recurrent state. Both are what
``pfsr recommend`` computes; opening the store is not among it.

And a training step on long windows: gradients through all of a window, against pieces of it that
begin with the state which the piece before left, detached.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.timing import Measurement, Work, compare
from pfsr_core.assembly.settings import Settings
from pfsr_core.assembly.task import make_model
from pfsr_core.models.encoders.base import RecurrentEncoder, State
from pfsr_core.models.next_item import NextItemModel
from pfsr_core.settings.sections import ModelSettings

NAME = "history"
ITEMS = 1682
RECENT = 50
HISTORIES = (200, 500, 1000, 2000, 5000)
CALLS = 10
FLAT = (200, 2000)  # serving after the longer may cost 1.3 times what it costs after the shorter
MOST = 1 / 1.3
WINDOWS = (4, 1000)  # rows and items of a training step
PIECE = 50
LEAST = 100.0  # times that reading everything costs at the longer of these


@dataclass(frozen=True)
class Server:
    """A model, the memory of a history, and the items (1, R) that follow it."""

    model: NextItemModel
    memory: State
    items: Tensor

    def serve(self) -> Tensor:
        """Scores from the memory: (1, V)."""
        last, _ = self.model.continue_from(self.items, self.memory)
        return last @ self.model.items.weight[1:].T

    def anew(self, items: Tensor) -> Tensor:
        """The scores of :meth:`serve`, made from all of ``items`` (1, N)."""
        recent, nobody = self.items.shape[1], torch.zeros(1, dtype=torch.long)
        memory = self.model.compress(items[:, :-recent], nobody)
        return Server(self.model, memory, self.items).serve()

    def read(self, items: Tensor) -> Tensor:
        """Scores by reading ``items`` (1, N): (1, V)."""
        hidden = self.model.encoder(self.model.embed(items))
        last: Tensor = hidden[:, -1]
        return last @ self.model.items.weight[1:].T


def measure() -> Iterator[Measurement]:
    """Both compressors against reading all, and reading what is recent alone."""
    with torch.no_grad():
        for length in HISTORIES:
            items = torch.randint(1, ITEMS + 1, (1, length))
            for name, recent in (("tokens", RECENT), ("state", 1)):
                server = server_of(name, items, recent)
                yield from _against_reading(name, server, items)
        for name, recent in (("tokens", RECENT), ("state", 1)):
            yield _flat(name, recent)
    for encoder in ("associative-mamba", "gru4rec"):
        yield _truncated(encoder)


def server_of(compressor: str, items: Tensor, recent: int) -> Server:
    """After all but the ``recent`` last of ``items`` (1, N)."""
    encoder = "sasrec" if compressor == "tokens" else "associative-mamba"
    settings = ModelSettings(
        encoder=encoder,
        compressor=compressor,
        num_heads=2,
        max_length=max(items.shape[1], RECENT + 1),
        recent=RECENT,
    )
    model = make_model(Settings(model=settings), ITEMS).eval()
    nobody = torch.zeros(1, dtype=torch.long)
    return Server(model, model.compress(items[:, :-recent], nobody), items[:, -recent:])


def _against_reading(name: str, server: Server, items: Tensor) -> Iterator[Measurement]:
    length = items.shape[1]
    peers: dict[str, Work] = {f"{name}, reading all": partial(server.read, items)}
    if name == "tokens":
        peers["tokens, without a memory"] = partial(server.anew, items)
        peers["recent items alone"] = partial(server.read, items[:, -RECENT:])
    for peer, work in peers.items():
        wanted = LEAST if length == FLAT[1] and peer.endswith("all") else None
        case = f"{name}, after {length} interactions"
        ours, size = partial(repeat, server.serve), float(length)
        yield per_call(compare(NAME, case, ours, peer, work, size=size), wanted)


def repeat(work: Work) -> None:
    """CALLS answers in a row: the first of them pays for what the peer left in the caches."""
    for _ in range(CALLS):
        work()


def per_call(measured: Measurement, target: float | None = None) -> Measurement:
    """Of a comparison with :func:`repeat`: from CALLS of our calls to one."""
    assert measured.ours_ms is not None and measured.ratio is not None
    ratio = measured.ratio * CALLS
    holds = None if target is None else ratio >= target
    ours = measured.ours_ms / CALLS
    return replace(measured, ours_ms=ours, ratio=ratio, target=target, holds=holds)


def _flat(name: str, recent: int) -> Measurement:
    short, long = (
        server_of(name, torch.randint(1, ITEMS + 1, (1, length)), recent) for length in FLAT
    )
    case = f"{name}, after {FLAT[1]} interactions against {FLAT[0]}"
    return compare(NAME, case, long.serve, f"after {FLAT[0]}", short.serve, target=MOST)


def _truncated(encoder: str) -> Measurement:
    model = make_model(Settings(model=ModelSettings(encoder=encoder, num_layers=1)), ITEMS)
    items = torch.randint(1, ITEMS + 1, WINDOWS)
    case = f"{encoder}, training on {WINDOWS[0]} windows of {WINDOWS[1]:,} items"
    peer = f"pieces of {PIECE}, state detached"
    whole, pieces = partial(_step, model, items, WINDOWS[1]), partial(_step, model, items, PIECE)
    return compare(NAME, case, whole, peer, pieces)


def _step(model: NextItemModel, items: Tensor, piece: int) -> None:
    """Forward and backward over ``items`` (B, L), ``piece`` after piece."""
    encoder = model.encoder
    assert isinstance(encoder, RecurrentEncoder)
    state = encoder.initial_state(len(items))
    for part in items.split(piece, dim=1):
        if part.shape == items.shape:
            hidden = encoder(model.embed(part))
        else:
            hidden, state = encoder.forward_from(model.embed(part), state)
            state = {name: tensor.detach() for name, tensor in state.items()}
        (hidden @ model.items.weight[1:].T).logsumexp(-1).mean().backward()
