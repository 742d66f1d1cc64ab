"""A federation of containers under test: a compose file, brought up, asked and taken down."""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfsr.deploy.flower_commands import make_authority, make_node_key, make_server_certificate
from pfsr_core.settings.recipes import load_recipe
from tests.docker.engine import ROOT, compose, environment, image, must

NODES = ("node-0", "node-1", "node-2")
SHORT = {
    "federation.clients": 6,
    "federation.round-timeout": 150.0,
    "run.baselines": False,
    "run.compare": "",
}
RUN_SECONDS = 900.0


@dataclass
class Containers:
    """One compose project of its own name; ``connection`` is the one of connections.toml."""

    file: str
    connection: str
    variables: Mapping[str, str]
    project: str = field(default_factory=lambda: f"pfsr-test-{uuid.uuid4().hex[:8]}")

    def compose(self, *words: str, seconds: float = 600, **options: Any) -> str:
        env = environment(**self.variables)
        return compose(self.file, "-p", self.project, *words, seconds=seconds, env=env, **options)

    def up(self, *names: str) -> None:
        """Returns when all of them are healthy."""
        self.compose("up", "--detach", "--no-build", "--wait", "--wait-timeout=400", *names)

    def flwr(self, *words: str, **options: Any) -> str:
        """The flower command, in the container of the SuperLink."""
        return self.compose("exec", "-T", "superlink", "flwr", *words, **options)

    def register(self, public_key: Path) -> None:
        self.flwr("supernode", "register", "/dev/stdin", "tls", input=public_key.read_text("utf-8"))

    def start_run(self, **data: str) -> str:
        """The id of a run of two rounds, on a synthetic world unless ``data`` says otherwise."""
        own = {f"data.{name}": value for name, value in data.items()}
        settings = {**load_recipe(ROOT / "recipes" / "smoke.toml"), **SHORT, **own}
        config = " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
        words = ("run", "/app", self.connection, "--run-config", config, "--format", "json")
        return str(_answer(self.flwr(*words))["run-id"])

    def status(self, run: str) -> str:
        words = ("list", self.connection, "--run-id", run, "--format", "json")
        return str(_answer(self.flwr(*words))["runs"][0]["status"])

    def finish(self, run: str) -> str:
        """The final status."""
        until(lambda: self.status(run).startswith("finished"), RUN_SECONDS, self.logs)
        return self.status(run)

    def python(self, name: str, code: str) -> str:
        return self.compose("exec", "-T", name, "python", "-c", code)

    def container(self, name: str) -> str:
        return self.compose("ps", "--all", "--quiet", name).strip()

    def health(self, name: str) -> str:
        form = "--format={{.State.Health.Status}}"
        return must("docker", "inspect", form, self.container(name)).strip()

    def logs(self, *names: str) -> str:
        return self.compose("logs", "--no-color", *names)

    def summary(self) -> dict[str, Any]:
        """``summary.json`` of the newest run."""
        code = (
            "import pathlib; found = pathlib.Path('/state/runs').glob('*/summary.json'); "
            "print(max(found, key=lambda path: path.stat().st_mtime).read_text())"
        )
        answer: dict[str, Any] = json.loads(self.python("superlink", code))
        return answer


@contextmanager
def containers(file: str, connection: str, **variables: str) -> Iterator[Containers]:
    """Taken down with its volumes at the end, whatever happened."""
    ports = {"PFSR_CONTROL_PORT": str(free_port()), "PFSR_FLEET_PORT": str(free_port())}
    found = Containers(file, connection, {"PFSR_IMAGE": image(), **ports, **variables})
    try:
        yield found
    finally:
        found.compose("down", "--volumes", "--timeout=20")


def _answer(text: str) -> dict[str, Any]:
    """What a flower command says with ``--format json``; it ends well even when it failed."""
    answer: dict[str, Any] = json.loads(text[text.index("{") :])
    assert answer["success"], text
    return answer


def make_secrets(directory: Path, keys: Sequence[str] = NODES, hosts: Sequence[str] = ()) -> None:
    """Certificates and keys. Others may read the files, but not enter the directory."""
    directory.mkdir(mode=0o700)
    make_authority(directory)
    make_server_certificate(directory, ["superlink", "superlink-control", *hosts])
    for name in keys:
        make_node_key(directory / f"{name}.key")
    for path in directory.iterdir():
        path.chmod(0o644)


def until(true: Callable[[], bool], seconds: float, explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {explain()[-6000:]}"
        time.sleep(2.0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
