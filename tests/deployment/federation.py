"""A federation of real processes: a SuperLink, SuperNodes with stores of their own, a third party.

Each of them has its own FLWR_HOME. Everything lies below one directory, listens on free ports of
one host (or where ``Sites`` puts it) and is gone when the context ends.
"""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pfsr.deploy import flower_commands as deployment
from pfsr.deploy.app_directory import CHECKOUT
from pfsr.deploy.processes import environment, stop
from pfsr_core.settings.fields import Value
from pfsr_core.settings.recipes import toml_value
from server_app.run_log import RunLog
from tests.deployment.processes import MARK, kill_family, reachable, start, sweep, wait_until

NAME = "pfsr-test"
PATIENCE = 300.0  # seconds for what happens by itself, on a machine that does other things too
RESTART_PAUSE = 5.0  # as a restart policy would wait
NodeConfig = Mapping[str, Value]


@dataclass(frozen=True)
class Sites:
    """Where the two sides run: a prefix of their commands, and the SuperLink's address."""

    server: Sequence[str] = ()
    nodes: Sequence[str] = ()
    host: str = "127.0.0.1"


@dataclass(frozen=True)
class Run:
    """A run that was handed in. ``root`` is its ``run.directory``, used by it alone."""

    number: str
    root: Path
    submitted: float

    @property
    def log(self) -> RunLog:
        (directory,) = self.root.iterdir()
        return RunLog(directory)

    def lines(self) -> list[dict[str, Any]]:
        """What metrics.jsonl holds so far."""
        path = next(self.root.glob("*/metrics.jsonl"), None)
        text = path.read_text("utf-8") if path else ""
        return [json.loads(line) for line in text.splitlines(True) if line.endswith("\n")]

    def rounds_done(self, algorithm: str = "pfsr") -> int:
        """The round of the last checkpoint, 0 before the first."""
        place = f"*/checkpoint-{algorithm}/checkpoint.safetensors"
        path = next(self.root.glob(place), None)
        if path is None:
            return 0
        with safe_open(path, framework="pt") as file:
            return int(json.loads(file.metadata()["progress"])["round"])


@dataclass
class Federation:
    """``count`` nodes; with TLS and node keys when ``secure``. A context manager."""

    home: Path
    count: int
    secure: bool = True
    sites: Sites = Sites()
    node_extra: NodeConfig = field(default_factory=dict)  # added to every node config
    variables: Mapping[str, str] = field(default_factory=dict)  # of every process, on top

    def __post_init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.fleet, self.control, *self.ports = _free_ports(2 + self.count)
        self.certificates = self.home / "certificates" if self.secure else None
        self.superlink: subprocess.Popen[bytes] | None = None
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        self.runs = 0

    def __enter__(self) -> Federation:
        try:
            self._prepare()
            self.start_superlink()
            for node in range(self.count):
                if self.secure:
                    self.register(self.key(node))
                self.start_node(node)
            return self
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_error: object) -> None:
        self.stop()

    # --- processes ---------------------------------------------------------------------------

    def start_superlink(self) -> None:
        """At the first call and after :meth:`kill_superlink`, on the same ports and database."""
        command = deployment.superlink_command(
            self.certificates,
            fleet_address=f"{self.sites.host}:{self.fleet}",
            control_address=f"127.0.0.1:{self.control}",
            database_file=self.home / "superlink.sqlite",
        )
        environment = self.environment("superlink")
        log = self.home / "superlink.log"
        self.superlink = start([*self.sites.server, *command], environment, log)
        for host, port in (("127.0.0.1", self.control), (self.sites.host, self.fleet)):
            wait_until(
                lambda host=host, port=port: reachable(host, port, self.sites.server),
                PATIENCE,
                f"the SuperLink on port {port}; see {log}",
            )

    def kill_superlink(self) -> None:
        assert self.superlink is not None
        kill_family(self.superlink)

    def start_node(self, node: int) -> None:
        command = deployment.node_command(
            f"{self.sites.host}:{self.fleet}",
            root_certificates=self.authority if self.secure else None,
            private_key=self.key(node) if self.secure else None,
            node_config=self.node_config(node),
            loopback_port=self.ports[node],
        )
        command = [*self.sites.nodes, *command]
        self.nodes[node] = start(command, self.environment(f"node-{node}"), self.node_log(node))

    def kill_node(self, node: int) -> None:
        kill_family(self.nodes[node])

    def keep_node(self, node: int, seconds: float) -> float:
        """Restarts a node as a restart policy does, until it is a member; seconds that it took.

        A keyed node is refused (code 305) while the SuperLink still believes in its old life.
        """
        began, deadline = time.monotonic(), time.monotonic() + seconds
        offset = self.node_log(node).stat().st_size
        self.start_node(node)
        while "SuperNode ID" not in self.node_text(node, offset):
            if time.monotonic() > deadline:
                raise AssertionError(f"node {node} was not back within {seconds:g} s")
            if self.nodes[node].poll() is not None:
                time.sleep(RESTART_PAUSE)
                self.start_node(node)
            time.sleep(0.1)
        return time.monotonic() - began

    def stop(self) -> None:
        """Politely, then for good; nodes first, so that they can say good-bye."""
        for process in [*self.nodes.values(), self.superlink]:
            if process is not None:
                stop(process)
        sweep(self.mark)

    # --- the third party ---------------------------------------------------------------------

    def flwr(self, *words: str) -> str:
        """What a ``flwr`` command of the third party prints. Raises AssertionError on a failure."""
        command = [*self.sites.server, deployment.tool("flwr"), *words]
        done = subprocess.run(
            command,
            env=self.environment("third-party"),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def register(self, key: Path) -> None:
        command = deployment.register_command(key.with_name(f"{key.name}.pub"), NAME)
        self.flwr(*command[1:])

    def submit(
        self, config: Mapping[str, Value], *, app: Path = CHECKOUT, root: Path | None = None
    ) -> Run:
        """``flwr run``, which only hands the run in."""
        self.runs += 1
        root = root or self.home / f"runs-{self.runs}"
        file = self.home / f"run-config-{self.runs}.toml"
        whole = {**config, "run.directory": str(root)}
        file.write_text("".join(f"{k} = {toml_value(v)}\n" for k, v in whole.items()), "utf-8")
        words = ["run", str(app), NAME, "--run-config", str(file), "--format", "json"]
        answer = json.loads(self.flwr(*words))
        return Run(str(answer["run-id"]), root, time.monotonic())

    def listed(self, run: Run) -> dict[str, Any]:
        """What ``flwr list`` says of a run: "status", "elapsed" in seconds, and more."""
        answer = self.flwr("list", NAME, "--run-id", run.number, "--format", "json")
        (entry,) = json.loads(answer)["runs"]
        return dict(entry)

    def status(self, run: Run) -> str:
        return str(self.listed(run)["status"])

    def wait(self, run: Run, seconds: float = PATIENCE) -> str:
        """The status with which a run ends, which is asked: a run that failed is no error here."""
        deadline = time.monotonic() + seconds
        while not (status := self.status(run)).startswith("finished"):
            if time.monotonic() > deadline:
                raise AssertionError(f"run {run.number} is {status!r} after {seconds:g} s")
            time.sleep(1.0)
        return status

    def said(self, run: Run) -> str:
        """What ``flwr log`` shows of a run."""
        return self.flwr("log", run.number, NAME, "--show")

    # --- files -------------------------------------------------------------------------------

    @property
    def authority(self) -> Path:
        assert self.certificates is not None
        return self.certificates / "ca.crt"

    def key(self, node: int) -> Path:
        return self.home / "keys" / f"node-{node}"

    def store(self, node: int) -> Path:
        return self.home / f"node-{node}" / "state" / f"node-{node}.sqlite"

    def node_config(self, node: int) -> NodeConfig:
        state = str(self.store(node).parent)
        parts = {"partition-id": node, "num-partitions": self.count, "state-dir": state}
        return {**parts, **self.node_extra}

    def node_log(self, node: int) -> Path:
        return self.home / f"node-{node}.log"

    def node_text(self, node: int, offset: int = 0) -> str:
        return self.node_log(node).read_bytes()[offset:].decode("utf-8", "replace")

    def _prepare(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        address = f"127.0.0.1:{self.control}"
        if self.certificates is not None:
            deployment.make_authority(self.certificates)
            hosts = ["localhost", "127.0.0.1", self.sites.host]
            deployment.make_server_certificate(self.certificates, list(dict.fromkeys(hosts)))
            for node in range(self.count):
                deployment.make_node_key(self.key(node))
        authority = self.authority if self.secure else None
        deployment.write_profile(self._flwr_home("third-party"), NAME, address, authority)

    def _flwr_home(self, who: str) -> Path:
        home = self.home / who / "flwr"
        home.mkdir(parents=True, exist_ok=True)
        return home

    def environment(self, who: str) -> dict[str, str]:
        return {
            **environment(self._flwr_home(who)),
            "PFSR_HOME": str(self.home / who),
            "PYTHONUNBUFFERED": "1",
            **self.variables,
            MARK: self.mark,
        }


def _free_ports(count: int) -> list[int]:
    """All different: the probes are open at the same time."""
    found: set[int] = set()
    while len(found) < count:
        found.add(deployment.free_port())
    return list(found)
