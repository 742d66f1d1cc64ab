"""The Mamba-1 mixer, tensor for tensor ``mamba_ssm.Mamba``, and the encoder made of it.

Source: Gu and Dao (2023), figure 3, for the block; Mamba4Rec (Liu et al., 2024) for what stands
around it. For u (B, L, D), with E = expand D channels, N states a channel, R = ceil(D / 16):

    x, z     = in_proj(u)                        (B, L, E) each
    x        = silu(causal depthwise conv(x))    W positions
    dt, B, C = x_proj(x)                         (B, L, R), (B, L, N), (B, L, N)
    dt       = softplus(dt_proj(dt))             (B, L, E)
    y        = selective_scan(x, dt, -exp(A_log), B, C) + D x
    out      = out_proj(y silu(z))               (B, L, D)

The nine parameters have the names, shapes and initialisation of mamba-ssm's, so that a
``state_dict`` loads strictly in either direction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from pfsr_core.models.encoders.base import State
from pfsr_core.models.encoders.layers import MixerLayer, Stack, causal_depthwise_conv
from pfsr_core.models.ops.selective_scan import UseKernel, selective_scan, selective_scan_step

DT_MIN, DT_MAX = 1e-3, 1e-1  # step sizes at initialisation, uniform in their logarithm


class Mamba1Mixer(nn.Module):
    """Selective state-space mixer, (B, L, D) to (B, L, D).

    State of one sequence: ``window`` (W - 1, E), the convolution's last inputs, and ``scan``
    (E, N). ``use_kernel="auto"`` uses mamba-ssm's scan on CUDA where it is installed.
    """

    def __init__(
        self,
        model_dim: int,
        state_dim: int,
        conv_width: int,
        expand: int,
        use_kernel: UseKernel = "auto",
    ) -> None:
        """A mixer of sequences of width ``model_dim``.

        Args:
            model_dim: D, width of an input.
            state_dim: N, numbers of state per channel.
            conv_width: W, positions that the convolution sees.
            expand: E / D, inner width over ``model_dim``.
            use_kernel: Whether mamba-ssm's compiled scan may be used.
        """
        super().__init__()
        inner_dim = expand * model_dim
        self.dt_rank = math.ceil(model_dim / 16)
        self.state_dim = state_dim
        self.use_kernel = use_kernel
        self.in_proj = nn.Linear(model_dim, 2 * inner_dim, bias=False)
        self.conv1d = nn.Conv1d(
            inner_dim, inner_dim, conv_width, groups=inner_dim, padding=conv_width - 1
        )
        self.x_proj = nn.Linear(inner_dim, self.dt_rank + 2 * state_dim, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner_dim)
        self.A_log = nn.Parameter(torch.arange(1.0, state_dim + 1).log().repeat(inner_dim, 1))
        self.D = nn.Parameter(torch.ones(inner_dim))
        self.out_proj = nn.Linear(inner_dim, model_dim, bias=False)
        self._initialise_dt()

    def forward(
        self, u: Tensor, _seq_lengths: Tensor | None = None, mixer_state: State | None = None
    ) -> Tensor:
        """All positions: u (B, L, D) to (B, L, D), from ``mixer_state`` on where it is given."""
        x, z = self.in_proj(u).chunk(2, dim=-1)
        conv_window = None if mixer_state is None else mixer_state["window"]
        x = silu(causal_depthwise_conv(x, *self._filters(), conv_window))
        dt, B, C = self._selection(x)
        y = selective_scan(x, dt, -self.A_log.exp(), B, C, use_kernel=self.use_kernel)
        if mixer_state is not None:
            y = y + self._of_start(mixer_state["scan"], dt, C)
        return self._gated_output(y, x, z)

    def initial_state(self, batch_size: int) -> State:
        """As :meth:`SequenceEncoder.initial_state`."""
        inner_dim, _, conv_width = self.conv1d.weight.shape
        return {
            "window": self.D.new_zeros(batch_size, conv_width - 1, inner_dim),
            "scan": self.D.new_zeros(batch_size, inner_dim, self.state_dim),
        }

    def step(self, u: Tensor, mixer_state: State) -> tuple[Tensor, State]:
        """As :meth:`SequenceEncoder.step`."""
        x, z = self.in_proj(u).chunk(2, dim=-1)
        conv_window = torch.cat([mixer_state["window"], x.unsqueeze(1)], dim=1)
        conv_weight, conv_bias = self._filters()
        x = silu((conv_window * conv_weight.squeeze(1).t()).sum(1) + conv_bias)
        dt, B, C = self._selection(x)
        scan_state, y = selective_scan_step(x, dt, -self.A_log.exp(), B, C, h=mixer_state["scan"])
        return self._gated_output(y, x, z), {"window": conv_window[:, 1:], "scan": scan_state}

    def final_state(self, u: Tensor, mixer_state: State) -> State:
        """As :meth:`Mixer.final_state`."""
        x, _ = self.in_proj(u).chunk(2, dim=-1)
        conv_window = torch.cat([mixer_state["window"], x], dim=1)[:, x.shape[1] :]
        x = silu(causal_depthwise_conv(x, *self._filters(), mixer_state["window"]))
        dt, B, _ = self._selection(x)
        elapsed_time, A = dt.cumsum(1), -self.A_log.exp()
        decay_weights = torch.exp(
            (elapsed_time[:, -1:] - elapsed_time).unsqueeze(-1) * A
        )  # (B, L, E, N)
        written_state = torch.einsum("blen,ble,bln->ben", decay_weights, dt * x, B)
        faded_state = torch.exp(elapsed_time[:, -1].unsqueeze(-1) * A) * mixer_state["scan"]
        return {"window": conv_window, "scan": faded_state + written_state}

    def _of_start(self, scan_state: Tensor, dt: Tensor, C: Tensor) -> Tensor:
        """What a first state (B, E, N) adds to y (B, L, E): the scan is linear in it."""
        decay = torch.exp(dt.cumsum(1).unsqueeze(-1) * -self.A_log.exp())
        return ((decay * scan_state.unsqueeze(1)) @ C.unsqueeze(-1)).squeeze(-1)

    def _filters(self) -> tuple[Tensor, Tensor]:
        assert self.conv1d.bias is not None  # nn.Conv1d may have none
        return self.conv1d.weight, self.conv1d.bias

    def _selection(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dt, B and C of inputs (..., E): what each interaction writes and reads."""
        split_sizes = [self.dt_rank, self.state_dim, self.state_dim]
        dt, B, C = self.x_proj(x).split(split_sizes, dim=-1)
        return softplus(self.dt_proj(dt)), B, C

    def _gated_output(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        block_output: Tensor = self.out_proj((y + self.D * x) * silu(z))
        return block_output

    @torch.no_grad()
    def _initialise_dt(self) -> None:
        """Biases such that softplus(bias) is log-uniform in [DT_MIN, DT_MAX].

        Mamba4Rec's code lets a general initialisation overwrite this; it is kept here.
        """
        self.dt_proj.weight.uniform_(-(self.dt_rank**-0.5), self.dt_rank**-0.5)
        log_min, log_max = math.log(DT_MIN), math.log(DT_MAX)
        dt = torch.empty_like(self.dt_proj.bias).uniform_(log_min, log_max).exp()
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus


def mamba1_encoder(
    embedding_dim: int,
    num_layers: int,
    *,
    state_dim: int,
    conv_width: int,
    expand: int,
    dropout_rate: float,
) -> Stack:
    """Mamba4Rec's encoder: (B, L, D) to (B, L, D).

    Args:
        embedding_dim: D, width of an item vector.
        num_layers: Layers; one alone has no residual.
        state_dim: N, numbers of state per channel.
        conv_width: W, positions that the convolution sees.
        expand: E / D, inner width over ``embedding_dim``.
        dropout_rate: Probability that an entry is dropped.
    """
    add_residual = num_layers > 1
    mixers = [Mamba1Mixer(embedding_dim, state_dim, conv_width, expand) for _ in range(num_layers)]
    return Stack([MixerLayer(mixer, embedding_dim, dropout_rate, add_residual) for mixer in mixers])
