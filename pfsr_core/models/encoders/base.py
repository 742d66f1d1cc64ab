"""What a sequence encoder and a mixer are: the interfaces that the encoders answer to."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pfsr_core.models.ops.dropout import Noise
from pfsr_core.models.ops.packed_sequences import Layout

State = dict[str, Tensor]


class Encoder(Protocol):
    """A causal map of sequences; an ``nn.Module`` at run time.

    Calling it maps x (B, L, D), right-padded, to (B, L, D). Position t sees positions <= t only,
    so padding on the right never reaches an earlier position.

    An encoder with an attribute ``reads_times`` that is True takes the times of the interactions as
    one more argument: (B, L) in a call, (B,) in a step, whole seconds; None where they are unknown.
    """

    def __call__(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """All positions at once: (B, L, D) to (B, L, D). With ``noise`` its dropout acts."""

    def initial_state(self, batch_size: int) -> State:
        """The state before the first interaction, on the parameters' device and in their dtype.

        Every tensor has ``batch_size`` as its first dimension.
        """

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One new interaction x (B, D): the output (B, D) and the next state.

        Neither ``x`` nor ``state`` is written to.
        """


class RecurrentEncoder(Encoder, Protocol):
    """An encoder whose state has one size however long the history is."""

    def __call__(
        self,
        x: Tensor,
        noise: Noise | None = None,
        layout: Layout | None = None,
        state: State | None = None,
    ) -> Tensor:
        """As an encoder; ``state``: what the sequence begins with, as :meth:`step` takes it.

        ``layout`` where it has ``packs`` only.
        """

    def resume(self, x: Tensor, state: State, noise: Noise | None = None) -> tuple[Tensor, State]:
        """All of x (B, L, D) after ``state``, L >= 1: the outputs and the state after the last.

        What as many :meth:`step` give, all at once. x has no padding.
        """


class Mixer(Protocol):
    """An encoder without dropout, which may be told how long the sequences are."""

    def __call__(
        self, x: Tensor, lengths: Tensor | None = None, state: State | None = None
    ) -> Tensor:
        """(B, L, D) to (B, L, D); with ``lengths`` (B,) whatever behind them.

        ``state``: what the sequence begins with, in place of the initial state.
        """

    def initial_state(self, batch_size: int) -> State:
        """As an encoder's."""

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """As an encoder's."""

    def after(self, x: Tensor, state: State) -> State:
        """The state that x (B, L, D) leaves behind, L >= 1, where it was ``state`` before."""
