"""What a round of a deployment costs beyond training, with and without what keeps it low.

    python -m tests.deployment.overhead --nodes 2 4 8

Two federations of the same app take turns on this machine. The one is as it is delivered: a
resident worker on each node, short polls at the server and in Flower's task loop. The other loads
torch and the data for every message and polls as Flower does. One array and one exchange a round
belong to both. Training is tiny; what it takes a resident worker (the slowest node's own seconds)
is subtracted from both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfsr.deploy.app_directory import CHECKOUT
from pfsr.deploy.processes import descendants
from tests.deployment.faults import copy_app
from tests.deployment.federation import Federation
from tests.deployment.helpers import QUICK
from tests.deployment.processes import marked

TICKS = 100.0  # of a second of processor time, in /proc
KINDS = {
    "flower-superlin": "SuperLink",
    "flwr-serverapp": "ServerApp",
    "flower-supernod": "SuperNodes",
    "flower-superexe": "task loops",
    "flwr-clientapp": "ClientApp processes",
}


@dataclass(frozen=True)
class Variant:
    name: str
    worker: bool
    task_poll: str
    reply_poll: str | None  # seconds; None: as delivered


DELIVERED = Variant("delivered", worker=True, task_poll="0.2", reply_poll=None)
PLAIN = Variant("without", worker=False, task_poll="1.0", reply_poll="3.0")


def measure(variant: Variant, nodes: int, rounds: int) -> dict[str, Any]:
    """One run; the first round, which starts workers and loads the data, is told apart."""
    with tempfile.TemporaryDirectory(prefix="pfsr-overhead-") as place:
        home = Path(place)
        federation = Federation(
            home / "federation",
            nodes,
            secure=False,
            node_extra={"worker": variant.worker},
            variables={"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": variant.task_poll},
        )
        with federation:
            config = {**QUICK, "federation.clients": 8, "federation.rounds": rounds + 1}
            before = processor_seconds(federation)
            run = federation.submit(config, app=bundle(home / "app", variant))
            status = federation.wait(run, 1800)
            if status != "finished:completed":
                raise RuntimeError(f"{status}\n{federation.said(run)}")
            used = processor_seconds(federation)
            used.subtract(before)
        lines = [line for line in run.lines() if line["round"] > 0]
    seconds = [line["seconds"] for line in lines]
    exchanges = len(lines) + 2  # hello and finish are exchanges too
    return {
        "variant": variant.name,
        "nodes": nodes,
        "first": seconds[0],
        "rounds": seconds[1:],
        "training": statistics.median(line["node-seconds"] for line in lines[1:]),
        "processor": {kind: seconds / exchanges for kind, seconds in used.items()},
        "bytes-up": lines[-1]["bytes-up"],
        "bytes-down": lines[-1]["bytes-down"],
    }


def bundle(app: Path, variant: Variant) -> Path:
    """The app as delivered, or a copy that waits for replies as Flower's own grid does."""
    if variant.reply_poll is None:
        return CHECKOUT
    copy_app(app)
    messaging = app / "server_app" / "messaging.py"
    text = messaging.read_text("utf-8")
    constants = "FIRST_POLL, LONGEST_POLL = 0.02, 1.0"
    if constants not in text:
        raise RuntimeError(f"{messaging} has no line {constants!r}")
    poll = variant.reply_poll
    messaging.write_text(
        text.replace(constants, f"FIRST_POLL, LONGEST_POLL = {poll}, {poll}"), "utf-8"
    )
    return app


def processor_seconds(federation: Federation) -> Counter[str]:
    """Processor seconds of a federation's processes so far, ended ones included, by kind."""
    roots = [process.pid for process in federation.nodes.values()]
    if federation.superlink is not None:
        roots.append(federation.superlink.pid)
    pids = {*roots, *marked(federation.mark)}
    for root in roots:
        pids |= set(descendants(root))
    total: Counter[str] = Counter()
    for pid in pids:
        try:
            name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        fields = rest.split()
        own, ended = [(int(a) + int(b)) / TICKS for a, b in (fields[11:13], fields[13:15])]
        total[KINDS.get(name, "workers")] += own
        if name == "flower-superexe":
            total["ClientApp processes"] += ended
    return total


def table(results: Sequence[dict[str, Any]]) -> str:
    """Seconds a round beyond training: medians by number of nodes, and their ratios."""
    lines = [
        "| nodes | without, s a round | delivered, s a round | ratio | by pair |",
        "|---|---|---|---|---|",
    ]
    for nodes in sorted({r["nodes"] for r in results}):
        plain, delivered = (
            [r for r in results if r["nodes"] == nodes and r["variant"] == variant.name]
            for variant in (PLAIN, DELIVERED)
        )
        training = statistics.median(r["training"] for r in delivered)
        seconds = [[_beyond(r, training) for r in side] for side in (plain, delivered)]
        slow, fast = (statistics.median(side) for side in seconds)
        pairs = " ".join(f"{a / b:.2f}" for a, b in zip(*seconds, strict=True))
        lines.append(f"| {nodes} | {slow:.1f} | {fast:.1f} | {slow / fast:.2f} | {pairs} |")
    return "\n".join(lines)


def _beyond(result: dict[str, Any], training: float) -> float:
    return statistics.median(result["rounds"]) - training


def where(results: Sequence[dict[str, Any]]) -> str:
    """Processor seconds an exchange, by kind of process."""
    kinds = sorted({kind for r in results for kind in r["processor"]})
    lines = [f"| nodes, variant | {' | '.join(kinds)} |", f"|---|{'---|' * len(kinds)}"]
    for nodes, name in sorted({(r["nodes"], r["variant"]) for r in results}):
        same = [r for r in results if (r["nodes"], r["variant"]) == (nodes, name)]
        means = [statistics.mean(r["processor"].get(kind, 0.0) for r in same) for kind in kinds]
        lines.append(f"| {nodes}, {name} | {' | '.join(f'{m:.2f}' for m in means)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON lines, one a run")
    options = parser.parse_args(arguments)
    results = []
    for nodes in options.nodes:
        for variant in [PLAIN, DELIVERED] * options.repeat:
            results.append(measure(variant, nodes, options.rounds))
            sys.stderr.write(f"{json.dumps(results[-1])}\n")
            if options.out:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(results[-1]) + "\n")
    sys.stdout.write(f"{table(results)}\n\n{where(results)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
