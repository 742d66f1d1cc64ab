"""The associative Mamba block: past and long-term profile in one causal, linear-time pass.

State-space dual form of Mamba-2 (Dao & Gu 2024; SSD4Rec) with a second, *anchored* direction.
The complete reversed scan of the prefix 1..t, read t, t-1, ..., 1, ends in

    S_t = sum_{s<=t} ( prod_{i<s} a_i ) * dt_s * B_s x_s,

because every per-token quantity depends on the past only. The backward states of all prefixes
therefore cost one pass, the block stays causal as a map, and one new interaction is O(1) work.
The forward state favours recent items, the anchored one the oldest.

    [z, x, B, C, dt] = in_proj(u);  x, B, C = silu(causal depthwise conv);  dt = softplus(dt + bias)
    a = -exp(A_log),  a' = -exp(A_log_anchored),  c_t = dt_1 + ... + dt_t  (c_0 = 0)
    y_t = sum_{s<=t} (C_t . B_s) [ exp(a (c_t - c_s)) + g_t exp(a' c_{s-1}) ] dt_s x_s  +  D x_t
    g_t = sigmoid(W_g u_t + b_g);   out = out_proj( rmsnorm( y * silu(z) ) )

Letters in shapes: B batch, L length, D model width, I inner width (expand * D), H heads,
P width of a head (I / H), N state size, K convolution width, Q chunk length, T chunks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfsr_core.models.encoders.base import State
from pfsr_core.models.encoders.layers import MixerLayer, Stack, causal_depthwise_conv
from pfsr_core.models.ops import kernels
from pfsr_core.models.ops.kernels import MixerParameters
from pfsr_core.models.ops.ssd import Direction, ScanInputs, ssd_chunked

RMS_NORM_EPS = 1e-5
WEIGHTED = ("in_proj", "out_proj", "conv1d", "norm")
GATE_BIAS = -2.0  # the anchored direction starts almost closed: sigmoid(-2) = 0.12


class DepthwiseTaps(nn.Module):
    """Weight (E, 1, K) and bias (E,) of a depthwise convolution, started as ``nn.Conv1d`` does."""

    def __init__(self, num_channels: int, num_taps: int) -> None:
        """Filters of ``num_taps`` = K positions, uniform within 1 / sqrt(K).

        Args:
            num_channels: E, filters, one for each channel.
            num_taps: K, positions of a filter.
        """
        super().__init__()
        init_bound = num_taps**-0.5
        self.weight = nn.Parameter(
            torch.empty(num_channels, 1, num_taps).uniform_(-init_bound, init_bound)
        )
        self.bias = nn.Parameter(torch.empty(num_channels).uniform_(-init_bound, init_bound))


class AssociativeMamba(nn.Module):
    """One associative Mamba mixer: (B, L, D) -> (B, L, D), causal.

    ``anchored=False`` leaves only the forward direction (plain Mamba-2 with one group).
    ``chunk_length`` bounds memory: O(L * chunk_length) pairwise coefficients in place of O(L * L).
    """

    def __init__(
        self,
        model_dim: int,
        *,
        state_dim: int = 32,
        conv_width: int = 4,
        expand: int = 2,
        num_heads: int = 4,
        anchored: bool = True,
        chunk_length: int = 64,
    ) -> None:
        """A mixer of sequences of width ``model_dim``.

        Args:
            model_dim: D, width of an input.
            state_dim: N, numbers of state per channel.
            conv_width: K, positions that the convolution sees.
            expand: Inner width over ``model_dim``.
            num_heads: H, heads, each with a decay of its own.
            anchored: Whether the second direction is there.
            chunk_length: Longest chunk of the scan.

        Raises:
            ValueError: ``num_heads`` does not divide the inner width.
        """
        super().__init__()
        inner_dim = expand * model_dim
        if inner_dim % num_heads:
            raise ValueError(
                f"num_heads={num_heads} does not divide expand * embedding_dim = {inner_dim}: "
                "choose a divisor"
            )
        self.inner, self.state_dim, self.num_heads = inner_dim, state_dim, num_heads
        self.conv_width, self.anchored, self.chunk = conv_width, anchored, chunk_length
        self.in_proj = nn.Linear(model_dim, 2 * inner_dim + 2 * state_dim + num_heads, bias=False)
        num_channels = inner_dim + 2 * state_dim
        self.conv1d = DepthwiseTaps(num_channels, conv_width)
        self.dt_bias = nn.Parameter(_initial_dt_bias(num_heads))
        self.A_log = nn.Parameter(torch.empty(num_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(num_heads))
        if anchored:
            self.A_log_anchored = nn.Parameter(torch.empty(num_heads).uniform_(1, 16).log())
            self.gate = nn.Linear(model_dim, num_heads)
            nn.init.constant_(self.gate.bias, GATE_BIAS)
        self.norm = nn.RMSNorm(inner_dim, eps=RMS_NORM_EPS)
        self.out_proj = nn.Linear(inner_dim, model_dim, bias=False)

    def forward(
        self, u: Tensor, seq_lengths: Tensor | None = None, mixer_state: State | None = None
    ) -> Tensor:
        """Mixes all positions; position t sees positions <= t only.

        Args:
            u: Inputs (B, L, D).
            seq_lengths: Positions of each sequence (B,); outputs behind them are undefined, and
                the kernel does not compute them.
            mixer_state: State before the first position; with one, plain PyTorch is used, because
                the kernel starts from the empty state.

        Returns:
            Outputs (B, L, D).
        """
        parameters = self._mixer_parameters()
        if mixer_state is None and kernels.applies_to(u, self.D):
            return kernels.mix(u, parameters, RMS_NORM_EPS, seq_lengths)
        return self._mix(u, parameters, mixer_state)

    def _mixer_parameters(self) -> MixerParameters:
        """Read where ``nn.Module`` keeps them: its attributes take longer than a kernel step."""
        modules: Any = self._modules  # typed as if any of them could be None
        own: Any = self._parameters
        tensors = [modules[name]._parameters["weight"] for name in WEIGHTED]
        tensors += [modules["conv1d"]._parameters["bias"], own["dt_bias"], own["A_log"], own["D"]]
        if self.anchored:
            gate = modules["gate"]._parameters
            tensors += [own["A_log_anchored"], gate["bias"], gate["weight"]]
        return MixerParameters(*tensors)

    def _mix(self, u: Tensor, p: MixerParameters, mixer_state: State | None = None) -> Tensor:
        """What the kernel does, in plain PyTorch: (B, L, D) -> (B, L, D)."""
        z, xBC, dt = F.linear(u, p.in_weight).split(self._widths(), dim=-1)
        previous_inputs = None if mixer_state is None else mixer_state["conv"].mT
        conv_output = causal_depthwise_conv(xBC, p.conv_weight, p.conv_bias, previous_inputs)
        x, B, C = self._split(F.silu(conv_output))
        dt = F.softplus(dt + p.dt_bias)
        a_anchored = gate = None
        if p.A_log_anchored is not None and p.gate_weight is not None:
            a_anchored = -torch.exp(p.A_log_anchored)
            gate = torch.sigmoid(F.linear(u, p.gate_weight, p.gate_bias))
        a, anchored = -torch.exp(p.A_log), None
        if a_anchored is not None and gate is not None:
            anchored = Direction(a_anchored, gate)
            if mixer_state is not None:
                faded_gate = gate * torch.exp(a_anchored * mixer_state["c"])[:, None]
                anchored = Direction(a_anchored, faded_gate)
        y = ssd_chunked(ScanInputs(x, dt, B, C), a, anchored, self.chunk)
        if mixer_state is not None:
            y = y + _of_start(mixer_state, torch.exp(a * dt.cumsum(1)), gate, C)
        gated_output = (y + p.D[:, None] * x).flatten(-2) * F.silu(z)
        return F.linear(
            F.rms_norm(gated_output, (self.inner,), p.norm_weight, RMS_NORM_EPS), p.out_weight
        )

    def initial_state(self, batch_size: int) -> State:
        """Recurrent state of an empty history: convolution window, h, S and c."""
        like = self.A_log
        H, P, N = self.num_heads, self.inner // self.num_heads, self.state_dim
        mixer_state = {
            "conv": like.new_zeros(
                batch_size, self.inner + 2 * self.state_dim, self.conv_width - 1
            ),
            "h": like.new_zeros(batch_size, H, P, N),
        }
        if self.anchored:
            mixer_state |= {
                "S": like.new_zeros(batch_size, H, P, N),
                "c": like.new_zeros(batch_size, H),
            }
        return mixer_state

    def step(self, u: Tensor, mixer_state: State) -> tuple[Tensor, State]:
        """One new interaction; neither input is written to.

        Args:
            u: Its input (B, D).
            mixer_state: State before it.

        Returns:
            The output (B, D) and the next state.
        """
        if not torch.is_grad_enabled() and kernels.applies_to(u, *mixer_state.values()):
            present = [tensor for tensor in self._mixer_parameters() if tensor is not None]
            kernel_output = kernels.step(u, mixer_state, present, RMS_NORM_EPS)
            if kernel_output is not None:
                return kernel_output
        z, xBC, dt = self._project(u)
        conv_window = torch.cat([mixer_state["conv"], xBC[..., None]], dim=-1)
        conv_output = (conv_window * self.conv1d.weight[:, 0]).sum(-1) + self.conv1d.bias
        x, B, C = self._split(F.silu(conv_output))
        a, a_anchored = self._decays()
        state_input = (dt[..., None] * x)[..., None] * B[:, None, None]  # (B, H, P, N)
        h = torch.exp(a * dt)[..., None, None] * mixer_state["h"] + state_input
        y = torch.einsum("bhpn,bn->bhp", h, C)
        next_state = {"conv": conv_window[..., 1:], "h": h}
        if a_anchored is not None:
            anchor = torch.exp(a_anchored * mixer_state["c"])
            S = mixer_state["S"] + anchor[..., None, None] * state_input
            gate = torch.sigmoid(self.gate(u))
            y = y + gate[..., None] * torch.einsum("bhpn,bn->bhp", S, C)
            next_state |= {"S": S, "c": mixer_state["c"] + dt}
        y = y + self.D[:, None] * x
        return self.out_proj(self.norm(y.flatten(-2) * F.silu(z))), next_state

    def final_state(self, u: Tensor, mixer_state: State) -> State:
        """The state that u (B, L, D) leaves behind where it was ``mixer_state`` before."""
        _, xBC, dt = self._project(u)
        previous_inputs = mixer_state["conv"].mT
        conv_weight, conv_bias = self.conv1d.weight, self.conv1d.bias
        x, B, _ = self._split(
            F.silu(causal_depthwise_conv(xBC, conv_weight, conv_bias, previous_inputs))
        )
        elapsed_time, state_input = dt.cumsum(1), dt[..., None] * x
        total_time, (a, a_anchored) = elapsed_time[:, -1], self._decays()

        def written(log_weights: Tensor) -> Tensor:
            write_weights = torch.exp(log_weights)[..., None] * state_input
            return torch.einsum("blhp,bln->bhpn", write_weights, B)

        faded_state = torch.exp(a * total_time)[..., None, None] * mixer_state["h"]
        next_state = {
            "conv": torch.cat([previous_inputs, xBC], dim=1)[:, u.shape[1] :].mT,
            "h": faded_state + written(a * (total_time[:, None] - elapsed_time)),
        }
        if a_anchored is not None:
            c = mixer_state["c"]
            S = mixer_state["S"] + written(a_anchored * (c[:, None] + elapsed_time - dt))
            next_state |= {"S": S, "c": c + total_time}
        return next_state

    def _project(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, xBC, dt = self.in_proj(u).split(self._widths(), dim=-1)
        return z, xBC, F.softplus(dt + self.dt_bias)

    def _widths(self) -> list[int]:
        """Columns of ``in_proj``: z; x, B and C; dt."""
        return [self.inner, self.inner + 2 * self.state_dim, self.num_heads]

    def _split(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, B, C = xBC.split([self.inner, self.state_dim, self.state_dim], dim=-1)
        return x.unflatten(-1, (self.num_heads, -1)), B, C

    def _decays(self) -> tuple[Tensor, Tensor | None]:
        anchored = -torch.exp(self.A_log_anchored) if self.anchored else None
        return -torch.exp(self.A_log), anchored


def _of_start(mixer_state: State, decay: Tensor, gate: Tensor | None, C: Tensor) -> Tensor:
    """The first state's share of y (B, L, H, P): the scan is linear in the state.

    ``decay`` and ``gate``: (B, L, H).
    """
    forward_output = decay[..., None] * torch.einsum("bhpn,bln->blhp", mixer_state["h"], C)
    if gate is None:
        return forward_output
    return forward_output + gate[..., None] * torch.einsum("bhpn,bln->blhp", mixer_state["S"], C)


def associative_encoder(
    embedding_dim: int, *, num_layers: int, dropout_rate: float, **mixer_options: int | bool
) -> Stack:
    """Mamba4Rec's encoder over associative mixers: (B, L, D) to (B, L, D).

    ``mixer_options``: keyword arguments of :class:`AssociativeMamba`.
    """
    add_residual = num_layers > 1
    mixers = [AssociativeMamba(embedding_dim, **mixer_options) for _ in range(num_layers)]  # type: ignore[arg-type]
    return Stack([MixerLayer(mixer, embedding_dim, dropout_rate, add_residual) for mixer in mixers])


def _initial_dt_bias(num_heads: int, min_dt: float = 1e-3, max_dt: float = 1e-1) -> Tensor:
    """Mamba's own start, (H,): dt log-uniform in [min_dt, max_dt], as the inverse of softplus."""
    dt = torch.exp(torch.rand(num_heads) * math.log(max_dt / min_dt) + math.log(min_dt)).clamp(
        min=1e-4
    )
    return dt + torch.log(-torch.expm1(-dt))
