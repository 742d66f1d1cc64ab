"""Whole federations in containers: a first try, and one with TLS whose node is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docker.engine import image, must
from tests.docker.federation import NODES, Containers, containers, make_secrets, until

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.timeout(2400)]

REACHED = """
import socket, sys
for host, port in (pair.split(":") for pair in sys.argv[1:]):
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
        print("open")
    except OSError:
        print("closed")
"""


@pytest.fixture(autouse=True)
def _built() -> None:
    image()


def reached(federation: Containers, name: str, *addresses: str) -> list[str]:
    """ "open" or "closed" for each address, seen from a container."""
    command = ("exec", "-T", name, "python", "-c", REACHED, *addresses)
    return federation.compose(*command).split()


def control_address(federation: Containers) -> str:
    form = '--format={{(index .NetworkSettings.Networks "%s_control").IPAddress}}'
    address = must(
        "docker", "inspect", form % federation.project, federation.container("superlink")
    )
    return address.strip()


def node_number(federation: Containers, name: str) -> str:
    """The id that the SuperLink knows the node by, as the node last logged it."""
    lines = federation.logs(name).splitlines()
    return [line.rpartition(" ")[2] for line in lines if "SuperNode ID:" in line][-1]


def test_a_first_try_trains_two_rounds_and_no_node_reaches_the_control_port() -> None:
    with containers("compose.yml", "insecure") as federation:
        federation.up()
        control = f"{control_address(federation)}:8000"
        seen = reached(federation, "node-0", "superlink:9092", "superlink:8000", control)
        assert seen == ["open", "closed", "closed"]
        assert reached(federation, "superlink", control) == ["open"]
        assert federation.finish(federation.start_run()) == "finished:completed"
        assert federation.summary()["methods"]
        words = ("--state", "/state/private", "--user", "guest", "--items", "item-34,item-8")
        answer = federation.compose("exec", "-T", "node-0", "pfsr", "recommend", *words)
        assert "(pfsr, round" in answer


def test_a_keyed_node_that_is_killed_comes_back_as_itself(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    make_secrets(secrets)
    with containers("compose.tls.yml", "tls", PFSR_SECRETS=str(secrets)) as federation:
        federation.up("superlink")
        for name in NODES:
            federation.register(secrets / f"{name}.key.pub")
        federation.up()
        number = node_number(federation, "node-1")

        run = federation.start_run()
        until(lambda: "train message" in federation.logs("node-1"), 300, federation.logs)
        federation.compose("kill", "node-1")
        federation.compose("start", "node-1")
        assert federation.finish(run) == "finished:completed"
        until(lambda: federation.health("node-1") == "healthy", 300, federation.logs)
        assert "waiting 65 seconds" in federation.logs("node-1")
        assert node_number(federation, "node-1") == number

        federation.compose("down", "--timeout=20")  # volumes stay, and registrations with them
        federation.up()
        assert node_number(federation, "node-1") == number
        assert federation.finish(federation.start_run()) == "finished:completed"


def test_a_machine_with_data_of_its_own_joins_through_the_open_port(tmp_path: Path) -> None:
    secrets, host = tmp_path / "secrets", bridge_address()
    make_secrets(secrets, keys=("node",), hosts=(host,))
    given = {"PFSR_SECRETS": str(secrets), "PFSR_DATA": str(own_interactions(tmp_path))}
    with containers("compose.tls.yml", "tls", **given) as federation:
        given["PFSR_SUPERLINK"] = f"{host}:{federation.variables['PFSR_FLEET_PORT']}"
        federation.up("superlink")
        federation.register(secrets / "node.key.pub")
        with containers("compose.node.yml", "", PFSR_PARTITION="7", **given) as machine:
            machine.up()
            assert reached(machine, "node", control_address(federation) + ":8000") == ["closed"]
            run = federation.start_run(source="file", path="")
            assert federation.finish(run) == "finished:completed"
            words = ("--state", "/state/private", "--user", "u3")
            answer = machine.compose("exec", "-T", "node", "pfsr", "recommend", *words)
            assert "(pfsr, round" in answer


def bridge_address() -> str:
    """The address of the host that every container can call."""
    form = "--format={{(index .IPAM.Config 0).Gateway}}"
    return must("docker", "network", "inspect", "bridge", form).strip()


def own_interactions(directory: Path) -> Path:
    """Twelve users who each walk along a circle of thirty items, as a CSV file."""
    path = directory / "interactions.csv"
    rows = [f"u{u},i{(5 * u + t) % 30},{1000 * u + t}\n" for u in range(12) for t in range(12)]
    path.write_text("user,item,timestamp\n" + "".join(rows), "utf-8")
    return path
