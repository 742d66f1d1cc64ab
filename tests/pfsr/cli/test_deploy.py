"""``pfsr deploy``: what is written, what is printed, and what would be run."""

from __future__ import annotations

import re
import shlex
import stat
import sys
import tomllib
from pathlib import Path

import pytest

from pfsr.cli import deploy
from tests.helpers.command_line import fail, succeed

NODE = ("deploy", "node", "--superlink", "server:9092", "--state", "state")
NODE += ("--ca", "tls/ca.crt", "--key", "node.key")


DOCS = Path(__file__).parents[3] / "docs" / "guides" / "deployment.md"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory with a Flower home of its own, and an environment with nothing set."""
    monkeypatch.chdir(tmp_path)
    for name in ("TELEMETRY_ENABLED", "DISABLE_UPDATE_CHECK"):
        monkeypatch.delenv(f"FLWR_{name}", raising=False)
    monkeypatch.delenv("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", raising=False)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """The command and environment that this process would have become."""
    calls: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(deploy.os, "execve", lambda _path, *rest: calls.append(rest))
    return calls


def command_in(text: str) -> list[str]:
    """The last command that was printed, as a shell reads it."""
    return shlex.split([line for line in text.splitlines() if line.startswith("$ ")][-1][2:])


@pytest.fixture
def ready(place: Path) -> Path:
    succeed("deploy", "init", "tls", "--host", "server.example", "--connection", "fed")
    succeed("deploy", "key", "node.key")
    (place / "shop.csv").write_text("user,item,time\n")
    return place


def test_init_makes_everything_that_the_server_needs(place: Path) -> None:
    text = succeed("deploy", "init", "tls", "--host", "a.example", "--host", "10.0.0.7")
    assert "next: pfsr deploy superlink tls" in text
    assert {path.name for path in (place / "tls").iterdir()} == {
        *("ca.key", "ca.crt", "server.key", "server.crt")
    }
    connections = tomllib.loads((place / "flwr" / "config.toml").read_text())["superlink"]
    assert connections["pfsr"] == {
        "address": "127.0.0.1:8000",
        "root-certificates": str(place / "tls" / "ca.crt"),
    }


def test_init_again_changes_nothing(ready: Path) -> None:
    before = {path: path.read_bytes() for path in (ready / "tls").iterdir()}
    assert "ca.key exists already" in fail("deploy", "init", "tls", "--host", "b.example")
    assert {path: path.read_bytes() for path in (ready / "tls").iterdir()} == before


def test_a_certificate_is_renewed_under_the_same_authority(ready: Path) -> None:
    before = {path.name: path.read_bytes() for path in (ready / "tls").iterdir()}
    assert "restart the SuperLink" in succeed("deploy", "certificate", "tls", "--host", "b.example")
    after = {path.name: path.read_bytes() for path in (ready / "tls").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"server.crt", "server.key"}


def test_profile_on_another_machine(ready: Path) -> None:
    text = succeed("deploy", "profile", "--ca", "tls/ca.crt", "--control", "127.0.0.1:8800")
    assert "has the connection 'pfsr' to 127.0.0.1:8800" in text
    connections = tomllib.loads((ready / "flwr" / "config.toml").read_text())["superlink"]
    assert set(connections) == {"default", "local", "fed", "pfsr"}


def test_superlink_prints_what_it_runs(ready: Path, started) -> None:
    text = succeed("deploy", "superlink", "tls", "--fleet", "0.0.0.0:19092")
    [(command, environment)] = started
    assert command_in(text) == command
    assert "--enable-supernode-auth" in command
    assert "--insecure" not in command
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--database") + 1] == str(ready / "tls" / "superlink.db")
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert str(Path(sys.executable).parent) in environment["PATH"]


def test_what_the_environment_says_already_has_the_last_word(
    ready: Path, started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    text = succeed("deploy", "superlink", "tls")
    assert started[0][1]["FLWR_TELEMETRY_ENABLED"] == "1"
    assert "TELEMETRY" not in text
    assert "$ export FLWR_DISABLE_UPDATE_CHECK=1" in text


def test_print_only_runs_nothing(ready: Path, started) -> None:
    for words in (("superlink", "tls"), ("register", "node.key.pub"), (*NODE[1:], "--part", "0/2")):
        text = succeed("deploy", *words, "--print-only")
        assert Path(command_in(text)[0]).is_file()
    assert started == []


def test_key_is_made_here_and_names_what_travels(place: Path) -> None:
    text = succeed("deploy", "key", "node.key")
    assert command_in(text)[0] == "ssh-keygen"
    assert "pfsr deploy register node.key.pub" in text
    assert stat.S_IMODE((place / "node.key").stat().st_mode) == 0o600


def test_register_takes_the_connection(ready: Path, started) -> None:
    text = succeed("deploy", "register", "node.key.pub", "--connection", "fed")
    [(command, _)] = started
    assert command_in(text) == command
    assert command[1:] == ["supernode", "register", str(ready / "node.key.pub"), "fed"]


def test_node_with_data_of_its_own(ready: Path, started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLWR_HOME")
    own = ["--name", "shop-1", "--data", "shop.csv", "--clients", 4]
    text = succeed(*NODE, *own, "--port", "9111")
    [(command, environment)] = started
    assert command_in(text) == command
    assert command[command.index("--port") + 1] == "9111"
    assert command[-1] == (
        f'name="shop-1" data-path="{ready}/shop.csv" data-source="file" '
        f'clients=4 state-dir="{ready}/state"'
    )
    assert environment["FLWR_HOME"] == f"{ready}/state/flwr"
    assert f"FLWR_HOME={ready}/state/flwr" in text
    assert stat.S_IMODE((ready / "state").stat().st_mode) == 0o700


def test_node_with_its_part_of_a_public_set(ready: Path, started) -> None:
    succeed(*NODE, "--part", "1/3")
    [(command, environment)] = started
    assert command[-1] == f'partition-id=1 num-partitions=3 state-dir="{ready}/state"'
    assert environment["FLWR_HOME"] == f"{ready}/flwr", "the environment has the last word"


def test_nodes_that_start_at_once_get_different_ports(ready: Path, started) -> None:
    for part in ("0/3", "1/3", "2/3"):
        succeed(*NODE, "--part", part)
    ports = {command[command.index("--port") + 1] for command, _ in started}
    assert len(ports) == 3


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (NODE, "which data? Fix: either --data FILE with --name, or --part I/N"),
        ((*NODE, "--data", "shop.csv", "--part", "0/2"), "which data?"),
        ((*NODE, "--data", "shop.csv"), "a node with data of its own has a name"),
        ((*NODE, "--data", "shop.csv", "--name", "a/b"), "has a name, not 'a/b'"),
        ((*NODE, "--data", "gone.csv", "--name", "a"), "gone.csv: no such file"),
        ((*NODE, "--part", "3/3"), "parts count from 0"),
        ((*NODE, "--part", "one"), "parts count from 0"),
        ((*NODE, "--part", "0/3", "--name", "a"), "need no name"),
        ((*NODE, "--part", "0/3", "--key", "no.key"), "Fix: pfsr deploy key no.key"),
        ((*NODE, "--part", "0/3", "--ca", "no.crt"), "Fix: copy ca.crt from the server"),
        ((*NODE, "--part", "0/3", "--superlink", "server"), "Fix: write HOST:PORT"),
        (("deploy", "superlink", "none"), "Fix: pfsr deploy init none --host NAME"),
        (("deploy", "superlink", "tls", "--control", "8000"), "Fix: write HOST:PORT"),
        (("deploy", "superlink", "tls", "--fleet", "9092"), "Fix: write HOST:PORT"),
        ((*NODE, "--part", "0/3", "--clients", "4"), "--clients groups the users of a node's own"),
        ((*NODE, "--part", "0/3", "--key", "node.key.pub"), "node.key.pub is no private key"),
        ((*NODE, "--data", ".", "--name", "a"), "no such file"),
        (("deploy", "register", "node.key"), "node.key is a private key, which never leaves"),
        (("deploy", "register", "no.pub"), "Fix: pfsr deploy key PATH on the node"),
        (("deploy", "key", "node.key"), "node.key exists already"),
        (("deploy", "certificate", "none", "--host", "a"), "no authority in none"),
        (("deploy", "init", "new", "--host", "a:1"), "'a:1' is no host"),
        (("deploy", "init", "new", "--host", "a", "--control", "a"), "Fix: write HOST:PORT"),
        (("doctor", "--superlink", "server"), "Fix: write HOST:PORT"),
    ],
)
def test_a_mistake_is_one_message(ready: Path, started, words, problem: str) -> None:
    before = sorted(ready.rglob("*"))
    assert problem in fail(*words)
    assert started == []
    assert sorted(ready.rglob("*")) == before, "nothing is written"


def test_the_documentation_names_every_command_and_none_that_is_not_there() -> None:
    registered = deploy.deploy_app.registered_commands
    commands = {command.name or command.callback.__name__ for command in registered}
    assert set(re.findall(r"pfsr deploy ([a-z]+)", DOCS.read_text("utf-8"))) == commands
