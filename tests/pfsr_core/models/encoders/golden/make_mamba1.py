"""Write mamba1.safetensors: what mamba-ssm's own reference computes, in float64.

    python make_mamba1.py UNPACKED_SOURCE_DISTRIBUTION

Needs torch, safetensors, einops and the unpacked source distribution of mamba-ssm (written with
2.3.2.post1; on a machine without CUDA, ``MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE pip
download --no-deps --no-binary=:all: --no-build-isolation mamba-ssm`` fetches it). Nothing is
compiled: the compiled modules are replaced by empty ones, the scan by the package's
``selective_scan_ref``, and its casts to float32 by casts to float64.

Tensors, for the cases named in ``CASES``:
    case/weight/*  a Mamba block's state     case/input, case/cotangent   (B, L, D)
    case/output    the block's output        case/grad/*  of sum(output * cotangent)
    scan/*         the same for ``selective_scan_ref`` alone: x, dt (B, L, E), A, B, C
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

CASES = {
    "small": {"d_model": 6, "d_state": 4, "d_conv": 4, "expand": 2},
    "two-ranks": {"d_model": 20, "d_state": 3, "d_conv": 3, "expand": 1},
}


def load_block(source: Path) -> tuple[Any, Any]:
    """The package's Mamba class, running on its own reference scan, and that scan."""
    package = ModuleType("mamba_ssm")
    package.__path__ = [str(source / "mamba_ssm")]
    norm = ModuleType("mamba_ssm.ops.triton.layer_norm")
    norm._layer_norm_fwd = None  # type: ignore[attr-defined]
    norm.RMSNorm = norm.layer_norm_fn = norm.rms_norm_fn = None  # type: ignore[attr-defined]
    stand_ins = (package, norm, ModuleType("selective_scan_cuda"))
    sys.modules |= {module.__name__: module for module in stand_ins}
    scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_ref
    block = importlib.import_module("mamba_ssm.modules.mamba_simple")
    block.selective_scan_fn = scan
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    return block.Mamba, scan


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def block_case(block: Any, sizes: dict[str, int]) -> dict[str, Tensor]:
    mamba = block(**sizes, use_fast_path=False).double()
    with torch.no_grad():
        for parameter in mamba.parameters():
            parameter.add_(0.2 * noise(*parameter.shape))
    x = noise(2, 19, sizes["d_model"]).requires_grad_()
    cotangent = noise(*x.shape)
    output = mamba(x)
    (output * cotangent).sum().backward()
    tensors = {"input": x, "cotangent": cotangent, "output": output, "grad/input": x.grad}
    for name, parameter in mamba.named_parameters():
        tensors |= {f"weight/{name}": parameter, f"grad/{name}": parameter.grad}
    return tensors


def scan_case(scan: Any) -> dict[str, Tensor]:
    inputs = {
        "x": noise(3, 23, 5),
        "dt": 0.3 * torch.rand(3, 23, 5, dtype=torch.float64),
        "A": -4 * torch.rand(5, 4, dtype=torch.float64),
        "B": noise(3, 23, 4),
        "C": noise(3, 23, 4),
    }
    x, dt, A, B, C = (tensor.requires_grad_() for tensor in inputs.values())
    x_, dt_, B_, C_ = (tensor.transpose(1, 2) for tensor in (x, dt, B, C))
    y = scan(x_, dt_, A, B_, C_).transpose(1, 2)
    cotangent = noise(*y.shape)
    (y * cotangent).sum().backward()
    gradients = {f"grad/{name}": tensor.grad for name, tensor in inputs.items()}
    return {**inputs, "output": y, "cotangent": cotangent, **gradients}


def main() -> None:
    block, scan = load_block(Path(sys.argv[1]))
    torch.manual_seed(7)
    cases = {name: block_case(block, sizes) for name, sizes in CASES.items()}
    cases["scan"] = scan_case(scan)
    tensors = {
        f"{case}/{name}": tensor.detach().contiguous()
        for case, named in cases.items()
        for name, tensor in named.items()
    }
    save_file(tensors, Path(__file__).with_name("mamba1.safetensors"))


if __name__ == "__main__":
    main()
