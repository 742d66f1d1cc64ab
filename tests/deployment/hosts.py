"""Two hosts and the cable between them: network namespaces with a veth pair. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.deployment.federation import Sites

SERVER_ADDRESS, NODES_ADDRESS = "10.213.47.1", "10.213.47.2"  # seen in the namespaces only


@dataclass(frozen=True)
class Hosts:
    """Names of the two namespaces; each has one end of the cable, of the same name."""

    server: str
    nodes: str

    @property
    def sites(self) -> Sites:
        return Sites(inside(self.server), inside(self.nodes), SERVER_ADDRESS)

    def cut(self, seconds: float) -> None:
        """The cable is out for so long."""
        ip("-n", self.server, "link", "set", self.server, "down")
        time.sleep(seconds)
        ip("-n", self.server, "link", "set", self.server, "up")


def inside(namespace: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", namespace)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Skips the test, with the reason, where namespaces cannot be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    token = uuid.uuid4().hex[:8]
    hosts = Hosts(f"pfsr-s{token}", f"pfsr-n{token}")
    try:
        _connect(hosts)
        yield hosts
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    finally:
        for name in (hosts.server, hosts.nodes):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _connect(hosts: Hosts) -> None:
    for name in (hosts.server, hosts.nodes):
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
    pair = ["type", "veth", "peer", "name", hosts.nodes, "netns", hosts.nodes]
    ip("link", "add", hosts.server, "netns", hosts.server, *pair)
    for name, address in ((hosts.server, SERVER_ADDRESS), (hosts.nodes, NODES_ADDRESS)):
        ip("-n", name, "address", "add", f"{address}/30", "dev", name)
        ip("-n", name, "link", "set", name, "up")
