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

    def __init__(self, model_dim: int, dropout_rate: float) -> None:
        """Maps of width ``model_dim``, with ``dropout_rate`` (a probability) after either."""
        super().__init__()
        self.expand = nn.Linear(model_dim, 4 * model_dim)
        self.contract = nn.Linear(4 * model_dim, model_dim)
        self.activation = nn.GELU()
        self.hidden_dropout = Dropout(dropout_rate, 4 * model_dim)
        self.dropout = Dropout(dropout_rate, model_dim)
        self.noise_width = noise_width(self.hidden_dropout, self.dropout)
        self.norm = nn.LayerNorm(model_dim, eps=NORM_EPS)

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """Position by position.

        Args:
            x: Inputs (..., D).
            noise: Random bits of dropout; None for no dropout.

        Returns:
            Outputs (..., D).
        """
        hidden_units = linear(x, self.expand.weight, self.expand.bias)
        hidden_units = self.hidden_dropout(self.activation(hidden_units), noise)
        contracted_units = linear(hidden_units, self.contract.weight, self.contract.bias)
        normed_output: Tensor = self.norm(self.dropout(contracted_units, noise) + x)
        return normed_output


class MixerLayer(RecurrentEncoder):
    """A mixer inside its residual, norm and feed-forward. (B, L, D) to (B, L, D).

    ``mixer`` is an ``nn.Module`` at run time. Mamba4Rec sets ``residual`` when the model has more
    than one layer.
    """

    packs = True
    mixer: Mixer

    def __init__(
        self, mixer: Mixer, model_dim: int, dropout_rate: float, add_residual: bool
    ) -> None:
        """A layer around ``mixer``, of width ``model_dim``.

        Args:
            mixer: What mixes positions, an ``nn.Module`` at run time.
            model_dim: D, width of an input.
            dropout_rate: Probability that an entry is dropped.
            add_residual: Whether the input is added to the mixer's output.
        """
        super().__init__()
        self.mixer = mixer
        self.residual = add_residual
        self.dropout = Dropout(dropout_rate, model_dim)
        self.norm = nn.LayerNorm(model_dim, eps=NORM_EPS)
        self.feed_forward = FeedForward(model_dim, dropout_rate)
        self.noise_width = noise_width(self.dropout, self.feed_forward)

    def forward(
        self,
        x: Tensor,
        noise: Noise | None = None,
        packed_batch: PackedSequences | None = None,
        encoder_state: State | None = None,
    ) -> Tensor:
        """With ``packed_batch`` x and the output are packed, (T, D), and so is the noise."""
        if packed_batch is None:
            return self._after_mixer(self.mixer(x, None, encoder_state), x, noise)
        mixer_output = self.mixer(packed_batch.pad(x), packed_batch.lengths, encoder_state)
        return self._after_mixer(packed_batch.pack(mixer_output), x, noise)

    def initial_state(self, batch_size: int) -> State:
        """As :meth:`SequenceEncoder.initial_state`."""
        return self.mixer.initial_state(batch_size)

    def step(self, x: Tensor, encoder_state: State) -> tuple[Tensor, State]:
        """As :meth:`SequenceEncoder.step`."""
        mixer_output, encoder_state = self.mixer.step(x, encoder_state)
        return self._after_mixer(mixer_output, x, None), encoder_state

    def forward_from(
        self, x: Tensor, encoder_state: State, noise: Noise | None = None
    ) -> tuple[Tensor, State]:
        """As :meth:`RecurrentEncoder.forward_from`."""
        return self(x, noise, None, encoder_state), self.mixer.final_state(x, encoder_state)

    def _after_mixer(self, mixer_output: Tensor, x: Tensor, noise: Noise | None) -> Tensor:
        mixer_output = self.dropout(mixer_output, noise)
        normed_output = self.norm(mixer_output + x if self.residual else mixer_output)
        layer_output: Tensor = self.feed_forward(normed_output, noise)
        return layer_output


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
        packed_batch: PackedSequences | None = None,
        encoder_state: State | None = None,
    ) -> Tensor:
        """With ``packed_batch`` everything is packed, (T, D); only where ``packs`` is True."""
        for layer_index, layer in enumerate(self.layers):
            layer_state = None if encoder_state is None else of_prefix(encoder_state, layer_index)
            x = layer(x, noise, packed_batch, layer_state)
        return x

    def initial_state(self, batch_size: int) -> State:
        """As :meth:`SequenceEncoder.initial_state`."""
        encoder_state: State = {}
        for layer_index, layer in enumerate(self.layers):
            encoder_state |= with_prefix(layer.initial_state(batch_size), layer_index)
        return encoder_state

    def step(self, x: Tensor, encoder_state: State) -> tuple[Tensor, State]:
        """As :meth:`SequenceEncoder.step`."""
        next_state: State = {}
        for layer_index, layer in enumerate(self.layers):
            x, layer_state = layer.step(x, of_prefix(encoder_state, layer_index))
            next_state |= with_prefix(layer_state, layer_index)
        return x, next_state

    def forward_from(
        self, x: Tensor, encoder_state: State, noise: Noise | None = None
    ) -> tuple[Tensor, State]:
        """As :meth:`RecurrentEncoder.forward_from`."""
        next_state: State = {}
        for layer_index, layer in enumerate(self.layers):
            x, layer_state = layer.forward_from(x, of_prefix(encoder_state, layer_index), noise)
            next_state |= with_prefix(layer_state, layer_index)
        return x, next_state


def causal_depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor, previous_inputs: Tensor | None = None
) -> Tensor:
    """Each channel's own filter over the last W positions: x (B, L, E) to (B, L, E).

    ``previous_inputs`` (B, W - 1, E): the inputs that came before, zeros without.

    ``weight`` (E, 1, W) and ``bias`` (E,) as ``nn.Conv1d(E, E, W, groups=E)`` holds them, the
    last tap on the current position. W shifted multiplications leave x in its layout and are
    faster on a CPU than the convolution between two transpositions.
    """
    seq_length, filter_width = x.shape[1], weight.shape[-1]
    if previous_inputs is None:
        padded_inputs = nn.functional.pad(x, (0, 0, filter_width - 1, 0))
    else:
        padded_inputs = cat([previous_inputs, x], dim=1)
    y = bias.expand_as(x)
    for tap_index in range(filter_width):
        y = addcmul(
            y, padded_inputs[:, tap_index : tap_index + seq_length], weight[:, 0, tap_index]
        )
    return y


def with_prefix(encoder_state: State, layer_index: int) -> State:
    """The state of one layer under the keys that it has in the state of the whole stack.

    Args:
        encoder_state: Of the layer.
        layer_index: Its place in the stack, which becomes the prefix.
    """
    return {f"{layer_index}.{state_key}": tensor for state_key, tensor in encoder_state.items()}


def of_prefix(encoder_state: State, layer_index: int) -> State:
    """The state of one layer out of that of the whole stack; undoes :func:`with_prefix`.

    Args:
        encoder_state: Of the stack.
        layer_index: Place of the layer in it.
    """
    prefix = f"{layer_index}."
    return {
        state_key.removeprefix(prefix): tensor
        for state_key, tensor in encoder_state.items()
        if state_key.startswith(prefix)
    }
