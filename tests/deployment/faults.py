"""ClientApps that fail: a copy of the app whose training misbehaves as a plan on disk says.

The product is not touched. The copy travels as a bundle like the app itself.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from pfsr.deploy.app_directory import CHECKOUT

BUNDLED = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "client_app",
    "pfsr_core",
    "server_app",
    "recipes",
)

MODULE = """
import json, os, time
from pathlib import Path

PLACE = Path({place!r})


def install(handlers):
    train = handlers.train

    def faulty(node, instruction, *rest):
        (PLACE / f"train-{{node.partition}}-{{instruction.round}}").touch()
        plan = json.loads((PLACE / "plan.json").read_text())
        here = [f for f in plan if f["node"] == node.partition and f["round"] == instruction.round]
        kinds = {{fault["kind"]: fault["seconds"] for fault in here}}
        if "raise" in kinds:
            raise RuntimeError("the sensor is unplugged")
        if "exit" in kinds:
            os._exit(7)
        time.sleep(kinds.get("sleep", 0.0))
        began = time.process_time()  # not the clock: the machine may do other things
        answer = train(node, instruction, *rest)
        if "slow" in kinds:
            time.sleep(9 * (time.process_time() - began))
        return answer

    handlers.train = faulty


def install_ask(worker_client):
    ask = worker_client.ask

    def faulty(request, seconds):
        plan = json.loads((PLACE / "plan.json").read_text())
        here = request.node_config["partition-id"], request.config.get("round")
        kinds = [fault["kind"] for fault in plan if (fault["node"], fault["round"]) == here]
        if "exit-message" in kinds and request.kind == "train":
            os._exit(7)
        return ask(request, seconds)

    worker_client.ask = faulty
"""


@dataclass(frozen=True)
class Fault:
    """What happens to the training of ``node`` in ``round``, every time that it is asked.

    ``kind``: raise, exit (the worker), exit-message (the process that Flower started for the
    message), sleep (``seconds``, then train), slow (ten times slower).
    """

    kind: str
    node: int
    round: int
    seconds: float = 0.0


@dataclass(frozen=True)
class FaultyApp:
    """The copy. Its plan is read anew by every training."""

    app: Path
    place: Path

    def plan(self, *faults: Fault) -> None:
        for old in self.place.glob("train-*"):
            old.unlink()
        stage = self.place / "plan.stage"
        stage.write_text(json.dumps([asdict(fault) for fault in faults]), "utf-8")
        stage.replace(self.place / "plan.json")

    def training(self, node: int, round_: int) -> bool:
        """Has the node begun to train in this round?"""
        return (self.place / f"train-{node}-{round_}").exists()


def copy_app(app: Path) -> None:
    """What the bundle is made of, in the new directory ``app``."""
    app.mkdir()
    for name in BUNDLED:
        source = CHECKOUT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, app / name)


def faulty_app(directory: Path, *faults: Fault) -> FaultyApp:
    """The copy below ``directory``, with these faults planned."""
    app, place = directory / "app", directory / "plans"
    place.mkdir(parents=True)
    copy_app(app)
    (app / "client_app" / "fault.py").write_text(MODULE.format(place=str(place)), "utf-8")
    with (app / "client_app" / "dispatch.py").open("a", encoding="utf-8") as file:
        file.write("\n\nfrom client_app import fault\n\nfault.install(handlers)\n")
    with (app / "client_app" / "app.py").open("a", encoding="utf-8") as file:
        file.write(
            "\n\nfrom client_app import fault, worker_client\n\nfault.install_ask(worker_client)\n"
        )
    faulty = FaultyApp(app, place)
    faulty.plan(*faults)
    return faulty
