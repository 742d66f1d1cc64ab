"""The image: built where a builder is, run as an orchestrator would, a number without rights."""

from __future__ import annotations

import json

import pytest

from tests.docker.engine import call, image, in_container, must

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.timeout(2400)]

WRITES = """
import pathlib
for name in ("/state/own", "/tmp/own", "/opt/own", "/app/own", "/own"):
    try:
        pathlib.Path(name).write_text("x")
        print(name, "written")
    except OSError as error:
        print(name, error.strerror)
"""
PACKAGES = """
import importlib.util
import flwr.clientapp, flwr.serverapp, torch
import pfsr_core.models.encoders.associative_mamba, client_app.app, server_app.app
print(torch.version.cuda, importlib.util.find_spec("ray"))
"""


@pytest.fixture(autouse=True)
def _built() -> None:
    image()


def test_the_doctor_finds_all_that_is_needed() -> None:
    assert "all that is needed is here" in in_container("pfsr", "doctor")


def test_both_apps_import_with_a_torch_for_processors_and_without_ray() -> None:
    assert in_container("python", "-c", PACKAGES).split() == ["None", "None"]


def test_the_user_is_a_number_without_rights() -> None:
    status = in_container("cat", "/proc/self/status").splitlines()
    facts = {name: value.split() for name, _, value in (line.partition(":") for line in status)}
    assert facts["Uid"] == ["10001"] * 4 and facts["Gid"] == ["10001"] * 4
    assert int(facts["CapEff"][0], 16) == int(facts["CapBnd"][0], 16) == 0
    assert facts["NoNewPrivs"] == ["1"]


def test_only_the_state_and_tmp_can_be_written() -> None:
    lines = dict(line.split(" ", 1) for line in in_container("python", "-c", WRITES).splitlines())
    assert lines.pop("/state/own") == lines.pop("/tmp/own") == "written"
    assert set(lines.values()) == {"Read-only file system"}


def test_a_fresh_named_volume_belongs_to_the_user() -> None:
    name = must("docker", "volume", "create").strip()
    try:
        mount = f"--volume={name}:/state"
        found = in_container("stat", "-c", "%u %g %a", "/state", options=("--read-only", mount))
    finally:
        must("docker", "volume", "rm", name)
    assert found.split() == ["10001", "10001", "700"]


def test_the_health_check_says_no_while_no_flower_runs() -> None:
    command = ("docker", "run", "--rm", "--network=none", image(), "python", "/opt/pfsr/health.py")
    done = call(*command)
    assert done.returncode == 1 and "does not answer" in done.stderr


def test_no_layer_names_a_secret_of_the_build() -> None:
    history = must("docker", "history", "--no-trunc", "--format={{.CreatedBy}}", image())
    facts = json.loads(must("docker", "image", "inspect", image()))[0]
    assert "PRIVATE KEY" not in history
    assert not any("PIP" in variable or "SECRET" in variable for variable in facts["Config"]["Env"])
    assert "clean" in in_container(
        "sh", "-c", "ls -A /run/secrets 2>/dev/null | grep . || echo clean"
    )
    assert facts["Config"]["User"] == "10001:10001"
