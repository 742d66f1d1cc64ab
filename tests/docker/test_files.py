"""The files that describe the containers: linted, resolved, and held to their promises."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import pytest

from tests.docker.engine import COMPOSE_FILES, FOLDER, ROOT, compose, environment, must, tool

Service = dict[str, Any]
NEEDED = {"PFSR_SUPERLINK": "fed.example:9092", "PFSR_PARTITION": "7", "PFSR_DATA": "/srv/own.csv"}
PRIVATE = re.compile(r"BEGIN [A-Z ]*PRIVATE KEY|password|passwd|token|://[^/\s]+:[^/\s]+@", re.I)


@functools.cache
def resolved(file: str, **variables: str) -> dict[str, Any]:
    """A compose file with its variables and anchors replaced: to read, not to change."""
    text = compose(
        file, "config", "--format", "json", env=environment(**{**NEEDED, **variables}), seconds=60
    )
    found: dict[str, Any] = json.loads(text)
    return found


def services(file: str) -> list[Any]:
    return [pytest.param(file, name, id=f"{file}:{name}") for name in NAMES[file]]


NAMES = {
    "compose.yml": ("superlink", "node-0", "node-1", "node-2"),
    "compose.tls.yml": ("superlink", "node-0", "node-1", "node-2"),
    "compose.node.yml": ("node",),
}
EVERY_SERVICE = [case for file in COMPOSE_FILES for case in services(file)]


def test_hadolint_has_no_objection() -> None:
    must(tool("hadolint"), "--failure-threshold", "info", str(FOLDER / "Dockerfile"))


@pytest.mark.parametrize("file", COMPOSE_FILES)
def test_the_services_are_those_tested_here(file: str) -> None:
    assert sorted(resolved(file)["services"]) == sorted(NAMES[file])


@pytest.mark.parametrize(("file", "name"), EVERY_SERVICE)
def test_a_service_may_do_nothing_that_it_does_not_need(file: str, name: str) -> None:
    service = resolved(file)["services"][name]
    user, _, group = service["user"].partition(":")
    assert int(user) > 0 and int(group) > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileges") and not service.get("privileged")
    assert all("noexec" in entry for entry in service["tmpfs"])
    assert service["init"] is True and service["pids_limit"] > 0


@pytest.mark.parametrize(("file", "name"), EVERY_SERVICE)
def test_state_is_in_a_named_volume_and_all_else_is_read_only(file: str, name: str) -> None:
    found = resolved(file)
    mounts = {entry["target"]: entry for entry in found["services"][name]["volumes"]}
    state = mounts.pop("/state")
    assert state["type"] == "volume" and state["source"] in found["volumes"]
    assert all(entry["read_only"] for entry in mounts.values())


@pytest.mark.parametrize("file", COMPOSE_FILES)
def test_every_service_has_a_state_of_its_own(file: str) -> None:
    sources = [
        entry["source"]
        for service in resolved(file)["services"].values()
        for entry in service["volumes"]
        if entry["target"] == "/state"
    ]
    assert len(set(sources)) == len(sources)


@pytest.mark.parametrize("file", COMPOSE_FILES)
def test_the_control_port_is_on_loopback_and_only_the_fleet_port_is_open(file: str) -> None:
    open_ports = set()
    for service in resolved(file)["services"].values():
        for port in service.get("ports", []):
            if port.get("host_ip") != "127.0.0.1":
                open_ports.add(port["target"])
    assert open_ports == ({9092} if file == "compose.tls.yml" else set())


@pytest.mark.parametrize("file", ["compose.yml", "compose.tls.yml"])
def test_no_node_shares_a_network_with_the_control_port(file: str) -> None:
    found = resolved(file)
    superlink = found["services"]["superlink"]
    assert superlink["networks"]["control"]["aliases"] == ["superlink-control"]
    assert "--host=superlink-control" in superlink["command"]
    assert found["networks"]["fleet"]["internal"] is True
    for name in ("node-0", "node-1", "node-2"):
        assert list(found["services"][name]["networks"]) == ["fleet"]


@pytest.mark.parametrize("file", COMPOSE_FILES)
def test_no_secret_is_in_the_environment_or_a_command(file: str) -> None:
    found = resolved(file)
    for service in found["services"].values():
        assert not PRIVATE.search(json.dumps([service.get("environment"), service["command"]]))
    for secret in found.get("secrets", {}).values():
        assert set(secret) == {"name", "file"}


@pytest.mark.parametrize("file", ["compose.tls.yml", "compose.node.yml"])
def test_each_node_gets_its_own_key_and_never_the_server_s(file: str) -> None:
    nodes = {n: s for n, s in resolved(file)["services"].items() if n != "superlink"}
    given = {n: {secret["source"] for secret in s["secrets"]} for n, s in nodes.items()}
    keys = [sources - {"ca"} for sources in given.values()]
    assert all(len(own) == 1 and "server-key" not in own for own in keys)
    assert len(set().union(*keys)) == len(keys)
    for service in nodes.values():
        assert "--insecure" not in service["command"]
        assert service["restart"] == "unless-stopped"
        assert int(service["environment"]["PFSR_RESTART_DELAY"]) > 60


def test_a_joining_node_has_to_say_who_it_is() -> None:
    for missing in NEEDED:
        with pytest.raises(AssertionError, match=missing):
            resolved("compose.node.yml", **{missing: ""})


def test_the_image_has_a_base_argument_a_health_check_and_an_exec_form() -> None:
    text = (FOLDER / "Dockerfile").read_text("utf-8")
    assert re.search(r"^ARG BASE_IMAGE=", text, re.M)
    assert "# syntax=" not in text  # a builder without network could not look it up
    assert re.search(r"^HEALTHCHECK .*\\\n    CMD \[", text, re.M)
    assert re.search(r'^ENTRYPOINT \["', text, re.M)
    assert re.findall(r"^USER (.*)$", text, re.M) == ["${USER_ID}:${USER_ID}"]
    assert int(re.findall(r"^ARG USER_ID=(\d+)$", text, re.M)[0]) > 0


def test_the_build_context_is_a_white_list() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert {name.partition("/")[0] for name in allowed} == {
        "pyproject.toml", "constraints.txt", "README.md", "LICENSE",
        "pfsr", "pfsr_core", "client_app", "server_app", "recipes", "docker",
    }  # fmt: skip
    assert all((ROOT / name).exists() for name in allowed)
