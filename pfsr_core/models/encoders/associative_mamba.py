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

NORM_EPS = 1e-5
WEIGHTED = ("in_proj", "out_proj", "conv1d", "norm")
GATE_BIAS = -2.0  # the anchored direction starts almost closed: sigmoid(-2) = 0.12


class DepthwiseTaps(nn.Module):
    """Weight (E, 1, K) and bias (E,) of a depthwise convolution, started as ``nn.Conv1d`` does."""

    def __init__(self, channels: int, width: int) -> None:
        """Taps of ``channels`` filters of ``width`` positions, uniform within 1 / sqrt(width)."""
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(channels, 1, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))


class AssociativeMamba(nn.Module):
    """One associative Mamba mixer: (B, L, D) -> (B, L, D), causal.

    ``anchored=False`` leaves only the forward direction (plain Mamba-2 with one group).
    ``chunk`` bounds memory: O(L * chunk) pairwise coefficients instead of O(L * L).
    """

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int = 32,
        conv_width: int = 4,
        expand: int = 2,
        num_heads: int = 4,
        anchored: bool = True,
        chunk: int = 64,
    ) -> None:
        """A mixer of sequences of width ``dim``.

        Args:
            dim: D, width of an input.
            state_dim: N, numbers of state per channel.
            conv_width: K, positions that the convolution sees.
            expand: Inner width over ``dim``.
            num_heads: H, heads, each with a decay of its own.
            anchored: Whether the second direction is there.
            chunk: Longest chunk of the scan.

        Raises:
            ValueError: ``num_heads`` does not divide the inner width.
        """
        super().__init__()
        inner = expand * dim
        if inner % num_heads:
            raise ValueError(
                f"num_heads={num_heads} does not divide expand * embedding_dim = {inner}: "
                "choose a divisor"
            )
        self.inner, self.state_dim, self.num_heads = inner, state_dim, num_heads
        self.conv_width, self.anchored, self.chunk = conv_width, anchored, chunk
        self.in_proj = nn.Linear(dim, 2 * inner + 2 * state_dim + num_heads, bias=False)
        channels = inner + 2 * state_dim
        self.conv1d = DepthwiseTaps(channels, conv_width)
        self.dt_bias = nn.Parameter(_initial_dt_bias(num_heads))
        self.A_log = nn.Parameter(torch.empty(num_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(num_heads))
        if anchored:
            self.A_log_anchored = nn.Parameter(torch.empty(num_heads).uniform_(1, 16).log())
            self.gate = nn.Linear(dim, num_heads)
            nn.init.constant_(self.gate.bias, GATE_BIAS)
        self.norm = nn.RMSNorm(inner, eps=NORM_EPS)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(
        self, u: Tensor, lengths: Tensor | None = None, state: State | None = None
    ) -> Tensor:
        """(B, L, D) -> (B, L, D); position t sees positions <= t only.

        What stands behind ``lengths`` (B,) may be anything, and the kernel does not compute it.
        From a ``state`` on plain PyTorch computes: the kernel begins with nothing.
        """
        parameters = self._mixer_parameters()
        if state is None and kernels.applies_to(u, self.D):
            return kernels.mix(u, parameters, NORM_EPS, lengths)
        return self._mix(u, parameters, state)

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

    def _mix(self, u: Tensor, p: MixerParameters, state: State | None = None) -> Tensor:
        """What the kernel does, in plain PyTorch: (B, L, D) -> (B, L, D)."""
        z, xBC, dt = F.linear(u, p.in_weight).split(self._widths(), dim=-1)
        before = None if state is None else state["conv"].mT
        convolved = causal_depthwise_conv(xBC, p.conv_weight, p.conv_bias, before)
        x, B, C = self._split(F.silu(convolved))
        dt = F.softplus(dt + p.dt_bias)
        a_anchored = gate = None
        if p.A_log_anchored is not None and p.gate_weight is not None:
            a_anchored = -torch.exp(p.A_log_anchored)
            gate = torch.sigmoid(F.linear(u, p.gate_weight, p.gate_bias))
        a, anchored = -torch.exp(p.A_log), None
        if a_anchored is not None and gate is not None:
            anchored = Direction(a_anchored, gate)
            if state is not None:
                scaled = gate * torch.exp(a_anchored * state["c"])[:, None]
                anchored = Direction(a_anchored, scaled)
        y = ssd_chunked(ScanInputs(x, dt, B, C), a, anchored, self.chunk)
        if state is not None:
            y = y + _of_start(state, torch.exp(a * dt.cumsum(1)), gate, C)
        gated = (y + p.D[:, None] * x).flatten(-2) * F.silu(z)
        return F.linear(F.rms_norm(gated, (self.inner,), p.norm_weight, NORM_EPS), p.out_weight)

    def initial_state(self, batch_size: int) -> State:
        """Recurrent state of an empty history: convolution window, h, S and c."""
        like = self.A_log
        H, P, N = self.num_heads, self.inner // self.num_heads, self.state_dim
        state = {
            "conv": like.new_zeros(
                batch_size, self.inner + 2 * self.state_dim, self.conv_width - 1
            ),
            "h": like.new_zeros(batch_size, H, P, N),
        }
        if self.anchored:
            state |= {
                "S": like.new_zeros(batch_size, H, P, N),
                "c": like.new_zeros(batch_size, H),
            }
        return state

    def step(self, u: Tensor, state: State) -> tuple[Tensor, State]:
        """One new interaction: (B, D), state -> (B, D), new state. Inputs are not written."""
        if not torch.is_grad_enabled() and kernels.applies_to(u, *state.values()):
            present = [tensor for tensor in self._mixer_parameters() if tensor is not None]
            stepped = kernels.step(u, state, present, NORM_EPS)
            if stepped is not None:
                return stepped
        z, xBC, dt = self._project(u)
        window = torch.cat([state["conv"], xBC[..., None]], dim=-1)
        convolved = (window * self.conv1d.weight[:, 0]).sum(-1) + self.conv1d.bias
        x, B, C = self._split(F.silu(convolved))
        a, a_anchored = self._decays()
        drive = (dt[..., None] * x)[..., None] * B[:, None, None]  # (B, H, P, N)
        h = torch.exp(a * dt)[..., None, None] * state["h"] + drive
        y = torch.einsum("bhpn,bn->bhp", h, C)
        new = {"conv": window[..., 1:], "h": h}
        gate = self._gate(u)
        if a_anchored is not None and gate is not None:
            S = state["S"] + torch.exp(a_anchored * state["c"])[..., None, None] * drive
            y = y + gate[..., None] * torch.einsum("bhpn,bn->bhp", S, C)
            new |= {"S": S, "c": state["c"] + dt}
        return self._finish(y + self.D[:, None] * x, z), new

    def final_state(self, u: Tensor, state: State) -> State:
        """The state that u (B, L, D) leaves behind where it was ``state`` before."""
        _, xBC, dt = self._project(u)
        before = state["conv"].mT
        weight, bias = self.conv1d.weight, self.conv1d.bias
        x, B, _ = self._split(F.silu(causal_depthwise_conv(xBC, weight, bias, before)))
        elapsed, drive = dt.cumsum(1), dt[..., None] * x
        end, (a, a_anchored) = elapsed[:, -1], self._decays()

        def written(log_weights: Tensor) -> Tensor:
            weights = torch.exp(log_weights)[..., None] * drive
            return torch.einsum("blhp,bln->bhpn", weights, B)

        kept = torch.exp(a * end)[..., None, None] * state["h"]
        new = {
            "conv": torch.cat([before, xBC], dim=1)[:, u.shape[1] :].mT,
            "h": kept + written(a * (end[:, None] - elapsed)),
        }
        if a_anchored is not None:
            c = state["c"]
            S = state["S"] + written(a_anchored * (c[:, None] + elapsed - dt))
            new |= {"S": S, "c": c + end}
        return new

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

    def _gate(self, u: Tensor) -> Tensor | None:
        return torch.sigmoid(self.gate(u)) if self.anchored else None

    def _finish(self, y: Tensor, z: Tensor) -> Tensor:
        projected: Tensor = self.out_proj(self.norm(y.flatten(-2) * F.silu(z)))
        return projected


def _of_start(state: State, decay: Tensor, gate: Tensor | None, C: Tensor) -> Tensor:
    """What a first state adds to y (B, L, H, P): the scan is linear in it.

    ``decay`` and ``gate`` (B, L, H).
    """
    read = decay[..., None] * torch.einsum("bhpn,bln->blhp", state["h"], C)
    if gate is None:
        return read
    return read + gate[..., None] * torch.einsum("bhpn,bln->blhp", state["S"], C)


def associative_encoder(
    embedding_dim: int, *, num_layers: int, dropout: float, **mixer: int | bool
) -> Stack:
    """Mamba4Rec's encoder over associative mixers: (B, L, D) to (B, L, D).

    ``mixer``: keyword arguments of :class:`AssociativeMamba`.
    """
    residual = num_layers > 1
    mixers = [AssociativeMamba(embedding_dim, **mixer) for _ in range(num_layers)]  # type: ignore[arg-type]
    return Stack([MixerLayer(one, embedding_dim, dropout, residual) for one in mixers])


def _initial_dt_bias(num_heads: int, low: float = 1e-3, high: float = 1e-1) -> Tensor:
    """Mamba's own start, (H,): dt log-uniform in [low, high], as the inverse of softplus."""
    dt = torch.exp(torch.rand(num_heads) * math.log(high / low) + math.log(low)).clamp(min=1e-4)
    return dt + torch.log(-torch.expm1(-dt))
