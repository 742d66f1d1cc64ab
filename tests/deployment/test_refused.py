"""Who is not let in: wrong authority, unknown key, no key, plain text."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pfsr.deploy import flower_commands as deployment
from pfsr.deploy.processes import stop
from tests.deployment.federation import NAME, Federation
from tests.deployment.helpers import figure
from tests.deployment.processes import WaitError, start, wait_until

pytestmark = [pytest.mark.deployment, pytest.mark.network, pytest.mark.timeout(600)]

ENDS_WITHIN = 120.0
WATCHED = 20.0  # seconds of a node that tries again and again
REFUSED = "Exit Code: 305"  # as Flower prints it; the process itself ends with 1


@dataclass(frozen=True)
class Outcome:
    code: int | None
    seconds: float
    said: str


def intruder(federation: Federation, kind: str, port: int) -> list[str]:
    """The command of a node that is wrong in one point."""
    place = federation.home / "intruders"
    known, unknown = federation.home / "keys" / "spare", place / "unknown"
    certificate, key = federation.authority, known
    if kind == "wrong authority":
        deployment.make_authority(place / "other")
        certificate = place / "other" / "ca.crt"
    if kind == "unknown key":
        deployment.make_node_key(unknown)
        key = unknown
    return deployment.node_command(
        f"127.0.0.1:{federation.fleet}",
        root_certificates=None if kind == "plain text" else certificate,
        private_key=None if kind in ("no key", "plain text") else key,
        node_config={"partition-id": 1, "num-partitions": 2},
        loopback_port=port,
    )


KINDS = ("wrong authority", "unknown key", "no key", "plain text")


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """(the federation, {kind: outcome}, its members when all had tried)."""
    home = tmp_path_factory.mktemp("refused")
    with Federation(home, 1) as federation:
        spare = home / "keys" / "spare"
        deployment.make_node_key(spare)
        federation.register(spare)
        wait_until(lambda: "SuperNode ID" in federation.node_text(0), 120, "the node let in")
        outcomes = {kind: attempt(federation, kind, home) for kind in KINDS}
        members = json.loads(federation.flwr("supernode", "list", NAME, "--format", "json"))
        yield federation, outcomes, members["nodes"]


def attempt(federation: Federation, kind: str, home: Path) -> Outcome:
    log = home / f"{kind}.log"
    environment = federation.environment(kind)
    began = time.monotonic()
    process = start(intruder(federation, kind, deployment.free_port()), environment, log)
    patience = WATCHED if kind == "plain text" else ENDS_WITHIN
    with contextlib.suppress(WaitError):
        wait_until(lambda: process.poll() is not None, patience, f"the end of {kind}")
    code, seconds = process.poll(), time.monotonic() - began
    stop(process)
    return Outcome(code, seconds, log.read_text("utf-8"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain text"])
def test_a_wrong_node_ends_with_an_error_and_never_gets_an_id(refused, kind):
    _federation, outcomes, _members = refused
    outcome = outcomes[kind]
    figure("refused", kind=kind, code=outcome.code, seconds=outcome.seconds)
    assert outcome.code == 1
    assert REFUSED in outcome.said
    assert "SuperNode ID" not in outcome.said


def test_plain_text_is_no_connection_and_the_node_never_gets_an_id(refused):
    """Flower takes it for a server that is away, and tries for ever: a user sees these lines."""
    _federation, outcomes, _members = refused
    outcome = outcomes["plain text"]
    figure("refused", kind="plain text", code=outcome.code, seconds=outcome.seconds)
    assert outcome.code is None
    assert outcome.said.count("Connection attempt failed, retrying") >= 2
    assert "SuperNode ID" not in outcome.said


def test_only_the_registered_node_is_a_member(refused):
    _federation, _outcomes, members = refused
    assert [node["status"] for node in members if node["status"] == "online"] == ["online"]
    assert len(members) == 2, members  # the spare key is registered, but nobody came with it


def test_the_same_key_with_the_right_authority_is_let_in(refused):
    """The control: what was refused above was refused for its one fault."""
    federation, _outcomes, _members = refused
    log = federation.home / "right.log"
    command = intruder(federation, "right", deployment.free_port())
    process = start(command, federation.environment("right"), log)
    try:
        wait_until(lambda: "SuperNode ID" in log.read_text("utf-8"), 120, f"an id; see {log}")
    finally:
        stop(process)
