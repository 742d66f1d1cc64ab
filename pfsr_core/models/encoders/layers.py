"""The structure the Mamba encoders share: mixer, residual, norm, feed-forward; and their stack.

Source: Mamba4Rec (Liu et al., 2024), section 3. One layer maps x (B, L, D) to

    h = norm(dropout(mixer(x)) + x)                   without "+ x" in a model of a single layer
    y = norm(dropout(W2 dropout(gelu(W1 h))) + h)     W1: D -> 4 D, W2: 4 D -> D

Every encoder, mixer and layer answers to the same contract, that of ``SequenceEncoder``: a whole
history at once (``forward``) or one interaction at a time (``initial_state``, ``step``), with equal
results.

Letters in shapes: B batch, L length, D width, T interactions of a packed batch, E channels and W
positions of a convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, addcmul, cat, nn

from pfsr_core.models.encoders.base import LayerList, Mixer, RecurrentEncoder, State
from pfsr_core.models.ops.dropout import Dropout, Noise, noise_width
from pfsr_core.models.ops.matmul import linear
from pfsr_core.models.ops.packed_sequences import PackedSequences

NORM_EPS = 1e-8  # the published 1e-12 is below what float32 resolves next to a variance


class FeedForward(nn.Module):
    """Position-wise D -> 4 D -> D with GELU, dropout, residual and norm. (..., D) to (..., D)."""

    def __init__(self, dim: int, dropout: float) -> None:
        """Maps of width ``dim``, with ``dropout`` (a probability) after either."""
        super().__init__()
        self.expand = nn.Linear(dim, 4 * dim)
        self.contract = nn.Linear(4 * dim, dim)
        self.activation = nn.GELU()
        self.hidden_dropout, self.dropout = Dropout(dropout, 4 * dim), Dropout(dropout, dim)
        self.noise_width = noise_width(self.hidden_dropout, self.dropout)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """Position by position: (..., D) to (..., D)."""
        hidden = linear(x, self.expand.weight, self.expand.bias)
        hidden = self.hidden_dropout(self.activation(hidden), noise)
        contracted = linear(hidden, self.contract.weight, self.contract.bias)
        normed: Tensor = self.norm(self.dropout(contracted, noise) + x)
        return normed


class MixerLayer(RecurrentEncoder):
    """A mixer inside its residual, norm and feed-forward. (B, L, D) to (B, L, D).

    ``mixer`` is an ``nn.Module`` at run time. Mamba4Rec sets ``residual`` when the model has more
    than one layer.
    """

    packs = True
    mixer: Mixer

    def __init__(self, mixer: Mixer, dim: int, dropout: float, residual: bool) -> None:
        """A layer around ``mixer``, of width ``dim``.

        Args:
            mixer: What mixes positions, an ``nn.Module`` at run time.
            dim: D, width of an input.
            dropout: Probability that an entry is dropped.
            residual: Whether the input is added to the mixer's output.
        """
        super().__init__()
        self.mixer = mixer
        self.residual = residual
        self.dropout = Dropout(dropout, dim)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.feed_forward = FeedForward(dim, dropout)
        self.noise_width = noise_width(self.dropout, self.feed_forward)

    def forward(
        self,
        x: Tensor,
        noise: Noise | None = None,
        packed: PackedSequences | None = None,
        state: State | None = None,
    ) -> Tensor:
        """With ``packed`` x and the output are packed, (T, D), and so is the noise."""
        if packed is None:
            return self._after_mixer(self.mixer(x, None, state), x, noise)
        mixed = self.mixer(packed.pad(x), packed.lengths, state)
        return self._after_mixer(packed.pack(mixed), x, noise)

    def initial_state(self, batch_size: int) -> State:
        """As :meth:`SequenceEncoder.initial_state`."""
        return self.mixer.initial_state(batch_size)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """As :meth:`SequenceEncoder.step`."""
        mixed, state = self.mixer.step(x, state)
        return self._after_mixer(mixed, x, None), state

    def forward_from(
        self, x: Tensor, state: State, noise: Noise | None = None
    ) -> tuple[Tensor, State]:
        """As :meth:`RecurrentEncoder.forward_from`."""
        return self(x, noise, None, state), self.mixer.final_state(x, state)

    def _after_mixer(self, mixed: Tensor, x: Tensor, noise: Noise | None) -> Tensor:
        mixed = self.dropout(mixed, noise)
        normed = self.norm(mixed + x if self.residual else mixed)
        out: Tensor = self.feed_forward(normed, noise)
        return out


class Stack(RecurrentEncoder):
    """Layers one after the other. (B, L, D) to (B, L, D).

    The state of layer i is kept under keys that begin with ``"i."``.
    """

    def __init__(self, layers: Sequence[RecurrentEncoder]) -> None:
        """The ``layers`` in the order in which they are applied."""
        super().__init__()
        self.layers = LayerList(layers)
        self.noise_width = noise_width(*self.layers)
        self.packs = all(layer.packs for layer in self.layers)

    def forward(
        self,
        x: Tensor,
        noise: Noise | None = None,
        packed: PackedSequences | None = None,
        state: State | None = None,
    ) -> Tensor:
        """With ``packed`` everything is packed, (T, D); only where ``packs`` is True."""
        for index, layer in enumerate(self.layers):
            own = None if state is None else of_prefix(state, index)
            x = layer(x, noise, packed, own)
        return x

    def initial_state(self, batch_size: int) -> State:
        """As :meth:`SequenceEncoder.initial_state`."""
        state: State = {}
        for index, layer in enumerate(self.layers):
            state |= with_prefix(layer.initial_state(batch_size), index)
        return state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """As :meth:`SequenceEncoder.step`."""
        next_state: State = {}
        for index, layer in enumerate(self.layers):
            x, layer_state = layer.step(x, of_prefix(state, index))
            next_state |= with_prefix(layer_state, index)
        return x, next_state

    def forward_from(
        self, x: Tensor, state: State, noise: Noise | None = None
    ) -> tuple[Tensor, State]:
        """As :meth:`RecurrentEncoder.forward_from`."""
        next_state: State = {}
        for index, layer in enumerate(self.layers):
            x, layer_state = layer.forward_from(x, of_prefix(state, index), noise)
            next_state |= with_prefix(layer_state, index)
        return x, next_state


def causal_depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor, before: Tensor | None = None
) -> Tensor:
    """Each channel's own filter over the last W positions: x (B, L, E) to (B, L, E).

    ``before`` (B, W - 1, E): the inputs that came before, zeros without.

    ``weight`` (E, 1, W) and ``bias`` (E,) as ``nn.Conv1d(E, E, W, groups=E)`` holds them, the
    last tap on the current position. W shifted multiplications leave x in its layout and are
    faster on a CPU than the convolution between two transpositions.
    """
    length, width = x.shape[1], weight.shape[-1]
    if before is None:
        padded = nn.functional.pad(x, (0, 0, width - 1, 0))
    else:
        padded = cat([before, x], dim=1)
    y = bias.expand_as(x)
    for tap in range(width):
        y = addcmul(y, padded[:, tap : tap + length], weight[:, 0, tap])
    return y


def with_prefix(state: State, index: int) -> State:
    """``state`` of one layer under the keys it has in the state of the whole stack."""
    return {f"{index}.{key}": tensor for key, tensor in state.items()}


def of_prefix(state: State, index: int) -> State:
    """The part of a stack's ``state`` that belongs to layer ``index``: undoes ``with_prefix``."""
    prefix = f"{index}."
    return {k.removeprefix(prefix): tensor for k, tensor in state.items() if k.startswith(prefix)}
