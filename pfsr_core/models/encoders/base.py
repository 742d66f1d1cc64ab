"""What a sequence encoder is: one base module that declares capabilities, and no behaviour.

A new encoder derives from :class:`SequenceEncoder`, or from :class:`RecurrentEncoder` where its
state has one size however long the history is, or from
:class:`pfsr_core.models.encoders.attention_masks.AttentionEncoder` where it takes an
attention plan. Everything that a model or a compressor asks of an encoder is declared here;
nothing is inherited to be reused.

Letters in shapes: B batch, L length, D width, T interactions of a packed batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from torch import Tensor, nn

from pfsr_core.models.ops.dropout import Noise

State = dict[str, Tensor]
Layer = TypeVar("Layer", bound=nn.Module)


class SequenceEncoder(nn.Module):
    """A causal map of sequences.

    Calling it maps x (B, L, D), right-padded, to (B, L, D). Position t sees positions <= t only,
    so padding on the right never reaches an earlier position. With ``noise`` its dropout acts.

    Attributes:
        reads_times: Whether it takes the times of the interactions as one more argument: (B, L) in
            a call, (B,) in a step, whole seconds; None where they are unknown.
        packs: Whether it takes a packed batch: x (T, D) with its ``PackedSequences``.
        noise_width: Random numbers that its dropout takes at every position.
    """

    reads_times: bool = False
    packs: bool = False
    noise_width: int = 0

    if TYPE_CHECKING:  # what nn.Module leaves untyped

        def __call__(self, *inputs: Any, **named: Any) -> Tensor:
            """Outputs of the module."""

    def initial_state(self, batch_size: int) -> State:
        """The state before the first interaction, on the parameters' device and in their dtype.

        Args:
            batch_size: B, first dimension of every tensor of the state.
        """
        raise NotImplementedError

    def step(self, x: Tensor, encoder_state: State) -> tuple[Tensor, State]:
        """One new interaction; neither input is written to.

        Args:
            x: Its item vector (B, D).
            encoder_state: State before it.

        Returns:
            The output (B, D) and the next state.
        """
        raise NotImplementedError


class RecurrentEncoder(SequenceEncoder):
    """An encoder whose state has one size however long the history is.

    Calling it takes ``(x, noise, packed, state)``; ``state``: what the sequence begins with, as
    :meth:`step` takes it. ``packed`` is given only where it ``packs``.
    """

    def forward_from(
        self, x: Tensor, encoder_state: State, noise: Noise | None = None
    ) -> tuple[Tensor, State]:
        """All positions at once from a state on; equal to as many calls of :meth:`step`.

        Args:
            x: Inputs (B, L, D) without padding, L >= 1.
            encoder_state: State before the first position.
            noise: Random bits of dropout; None for no dropout.

        Returns:
            Outputs (B, L, D), and the state after the last position.
        """
        raise NotImplementedError


class Mixer(Protocol):
    """An encoder without dropout that may be given the lengths of the sequences."""

    def __call__(
        self, x: Tensor, seq_lengths: Tensor | None = None, encoder_state: State | None = None
    ) -> Tensor:
        """Mixes all positions.

        Args:
            x: Inputs (B, L, D).
            seq_lengths: Positions of each sequence (B,); outputs behind them are undefined.
            encoder_state: State before the first position, instead of the initial state.

        Returns:
            Outputs (B, L, D).
        """

    def initial_state(self, batch_size: int) -> State:
        """As an encoder's."""

    def step(self, x: Tensor, encoder_state: State) -> tuple[Tensor, State]:
        """As an encoder's."""

    def final_state(self, x: Tensor, encoder_state: State) -> State:
        """The state after x (B, L, D), L >= 1, where it was ``encoder_state`` before."""


class LayerList(nn.ModuleList, Generic[Layer]):
    """An ``nn.ModuleList`` that knows the type of its layers; parameter names are the same."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        """The ``layers`` in the order in which they are applied."""
        super().__init__(layers)

    def __iter__(self) -> Iterator[Layer]:
        """The layers in this order."""
        return cast(Iterator[Layer], super().__iter__())  # nn.ModuleList forgets it
