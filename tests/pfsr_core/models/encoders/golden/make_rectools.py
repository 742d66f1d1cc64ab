"""Write rectools.safetensors: what the HSTU and the SASRec of RecTools compute, in float64.

    python make_rectools.py UNPACKED_WHEEL

Needs torch, safetensors and the unpacked wheel of rectools (written with 0.19.0; ``pip download
--no-deps rectools`` fetches it). Of the package only the modules of the two encoders are loaded;
what they import besides, for training, is replaced by empty classes. RecTools' HSTU is the released
code of its authors rewritten for dense tensors. What is set otherwise than there:

* Gaps of time are counted from an interaction's own time and not from the following one's: their
  matrix moved down by a row (``OwnTime``).
* The norms inside an HSTU block keep their initial scale and shift, which the authors' lack.
* SASRec's norms take the epsilon 1e-8 of the code that SASRec's authors released.

Tensors, for the cases "hstu" and "sasrec":
    case/weight/*  the encoder's state      case/input, case/output  (B, L, D)
    hstu/times     seconds (B, L)           hstu/lengths  (B,): the input is padded on the left
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

DIM, HEADS, BLOCKS, LENGTH = 8, 2, 2, 9
LENGTHS = (9, 6, 1)
TRANSFORMERS = "rectools.models.nn.transformers"
NOT_NEEDED = ("base", "data_preparator", "negative_sampler", "similarity", "torch_backbone")


class StandIn(ModuleType):
    """A module whose every name is an empty class that takes type arguments."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__class_getitem__": classmethod(lambda cls, _item: cls)})


def load(source: Path, module: str) -> Any:
    """``module`` of the transformers, with nothing of the package around it."""
    for name in ("rectools", "rectools.models", "rectools.models.nn", TRANSFORMERS):
        package = ModuleType(name)
        package.__path__ = [str(source.joinpath(*name.split(".")))]
        sys.modules.setdefault(name, package)
    others = [f"{TRANSFORMERS}.{name}" for name in NOT_NEEDED]
    for name in ("rectools.models.nn.item_net", *others):
        sys.modules.setdefault(name, StandIn(name))
    return importlib.import_module(f"{TRANSFORMERS}.{module}")


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def moved(encoder: nn.Module, kept: str) -> nn.Module:
    """In evaluation mode, with parameters moved from their start; not those of modules ``kept``."""
    for name, parameter in encoder.named_parameters():
        start = torch.zeros_like(parameter) if "uvqk" in name else parameter.detach()
        if kept not in name:
            parameter.data = start + 0.3 * torch.randn_like(start)
    return encoder.eval()


def hstu_case(hstu: Any) -> dict[str, Tensor]:
    class OwnTime(hstu.RelativeAttentionBias):
        def forward_time_attention(self, all_timestamps: Tensor) -> Tensor:
            following = super().forward_time_attention(all_timestamps)
            own = following.roll(1, dims=1)
            own[:, 0] = self.time_weights[0]  # only the first interaction itself is seen there
            return own

    sizes = {"linear_hidden_dim": DIM // HEADS, "attention_dim": DIM // HEADS}
    biases = {"relative_time_attention": True, "relative_pos_attention": True}
    encoder = hstu.STULayers(BLOCKS, DIM, HEADS, session_max_len=LENGTH, **sizes, **biases).double()
    for block in encoder.stu_blocks:
        block.rel_attn.__class__ = OwnTime
    encoder = moved(encoder, kept="norm")
    lengths = torch.tensor(LENGTHS)
    real = (torch.arange(LENGTH) >= LENGTH - lengths[:, None]).double()[..., None]
    x = noise(len(LENGTHS), LENGTH, DIM) * real
    gaps = (10 ** (8 * torch.rand(len(LENGTHS), LENGTH, dtype=torch.float64))).long() - 1
    times = 10**9 + gaps.cumsum(-1)
    batch = {"x": x, "unix_ts": torch.cat([times, times[:, -1:]], dim=1)}
    output = encoder(x.clone(), real, future(), None, batch)
    weights = {f"weight/{name}": tensor for name, tensor in encoder.state_dict().items()}
    return {**weights, "input": x, "output": output, "times": times, "lengths": lengths}


def sasrec_case(sasrec: Any) -> dict[str, Tensor]:
    encoder = sasrec.SASRecTransformerLayers(BLOCKS, DIM, HEADS, dropout_rate=0.1).double()
    encoder = moved(encoder, kept="nothing")
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-8
    x = noise(3, LENGTH, DIM)
    with torch.no_grad():
        output = encoder(x.clone(), torch.ones(3, LENGTH, 1), future(), None)
    weights = {f"weight/{name}": tensor for name, tensor in encoder.state_dict().items()}
    return {**weights, "input": x, "output": output}


def future() -> Tensor:
    return torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)


def main() -> None:
    source = Path(sys.argv[1])
    sasrec, hstu = load(source, "sasrec"), load(source, "hstu")
    torch.manual_seed(7)
    torch.set_default_dtype(torch.float64)
    cases = {"hstu": hstu_case(hstu), "sasrec": sasrec_case(sasrec)}
    tensors = {
        f"{case}/{name}": tensor.detach().contiguous()
        for case, named in cases.items()
        for name, tensor in named.items()
    }
    save_file(tensors, Path(__file__).with_name("rectools.safetensors"))


if __name__ == "__main__":
    main()
