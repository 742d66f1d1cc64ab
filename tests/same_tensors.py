"""Do two checkouts end fixed-seed runs with the same tensors, bit for bit?

    python -m tests.same_tensors BASE HERE

Every algorithm, item mode, compressor, encoder and engine is run, a few seconds each and without
Flower, in both checkouts by this interpreter. The final shared tensors, every client's private
state and the figures of the summary are compared; exits with 1 where one of them differs, and names
it. Both are computed on one machine: processors differ in the last bits, so no digest would hold.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.same_tensors_runs import RUNS, Figures, Tensors, Value, play

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "PFSR_HOME": ""}


def differences(base: Path, here: Path, name: str) -> Iterator[str]:
    """What differs between the two results of the run ``name``."""
    one, other = read_tensors(base, name), read_tensors(here, name)
    yield from missing(one, other, "tensor")
    for key in sorted(one.keys() & other.keys()):
        if one[key].dtype != other[key].dtype or one[key].shape != other[key].shape:
            yield f"{key}: {describe(one[key])} against {describe(other[key])}"
        elif not torch.equal(bits(one[key]), bits(other[key])):
            apart = (one[key].double() - other[key].double()).abs().max()
            yield f"{key}: up to {apart:.3g} apart"
    figures, others = read_figures(base, name), read_figures(here, name)
    for key in sorted(figures.keys() - others.keys()):
        if figures[key] != "":  # an empty cell may go; figures that are new in HERE are no matter
            yield f"figure {key} is in BASE only"
    for key in sorted(figures.keys() & others.keys()):
        if figures[key] != others[key]:
            yield f"figure {key}: {figures[key]!r} against {others[key]!r}"


def missing(one: Mapping[str, object], other: Mapping[str, object], what: str) -> Iterator[str]:
    for key in sorted(one.keys() - other.keys()):
        yield f"{what} {key} is in BASE only"
    for key in sorted(other.keys() - one.keys()):
        yield f"{what} {key} is in HERE only"


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor: nan equals nan, and 0.0 differs from -0.0."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def write_result(directory: Path, name: str, tensors: Tensors, figures: Figures) -> None:
    save_file({key: one.contiguous() for key, one in tensors.items()}, directory / f"{name}.pt")
    (directory / f"{name}.json").write_text(json.dumps(figures), "utf-8")


def read_tensors(directory: Path, name: str) -> Tensors:
    return load_file(directory / f"{name}.pt")


def read_figures(directory: Path, name: str) -> Figures:
    figures: Figures = json.loads((directory / f"{name}.json").read_text("utf-8"))
    return figures


def run_all(names: Sequence[str], changes: Mapping[str, Value], directory: Path) -> None:
    """Inside a checkout: every run, each to its own files."""
    torch.set_num_threads(1)
    for name in names:
        write_result(directory, name, *play({**RUNS[name], **changes}))


def start(checkout: Path, names: Sequence[str], changes: str, out: Path) -> subprocess.Popen[bytes]:
    """The runs in ``checkout``: its packages are imported, and these two files of tests."""
    driver = Path(__file__).resolve().parent.parent
    code = (
        f"import sys; sys.path.insert(0, {str(driver)!r}); import tests.same_tensors; "
        "del sys.path[0]; tests.same_tensors.main(sys.argv[1:])"
    )
    arguments = ["--inside", str(out), "--changes", changes, "--only", *names]
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, *arguments],
        cwd=checkout,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(checkout)},
    )


def compare(base: Path, here: Path, names: Sequence[str], changes: str) -> int:
    """Runs, prints the table, and returns how many runs differ. Raises SystemExit when one fails.

    ``changes``: settings of HERE alone, as JSON, to see that a difference is found.
    """
    with tempfile.TemporaryDirectory() as scratch:
        places = [Path(scratch) / "base", Path(scratch) / "here"]
        for place in places:
            place.mkdir()
        running = [
            start(checkout.resolve(), names, json.dumps({}) if not i else changes, places[i])
            for i, checkout in enumerate((base, here))
        ]
        codes = [process.wait() for process in running]
        if any(codes):
            raise SystemExit("a checkout cannot run them: see above")
        print(f"{'run':<24} {'tensors':>7} {'figures':>7}  equal")  # noqa: T201
        different = 0
        for name in names:
            found = list(differences(*places, name))
            different += bool(found)
            counts = len(read_tensors(places[1], name)), len(read_figures(places[1], name))
            says = "no" if found else "yes"
            print(f"{name:<24} {counts[0]:>7} {counts[1]:>7}  {says}")  # noqa: T201
            for line in found[:5]:
                print(f"    {line}")  # noqa: T201
            if len(found) > 5:
                print(f"    and {len(found) - 5} more")  # noqa: T201
    return different


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.same_tensors")
    parser.add_argument("base", type=Path, nargs="?", help="the checkout to compare with")
    parser.add_argument("here", type=Path, nargs="?", help="the checkout to look at")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN")
    parser.add_argument("--changes", default="{}", help="settings of HERE alone, as JSON")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.inside:
        run_all(given.only, json.loads(given.changes), given.inside)
        return 0
    if given.base is None or given.here is None:
        parser.error("two checkouts are needed: BASE HERE")
    return int(compare(given.base, given.here, given.only, given.changes) > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
