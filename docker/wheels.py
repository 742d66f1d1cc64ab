"""``wheels.py install ARGS`` and ``wheels.py check``: what the build of the image asks of pip.

``install`` runs ``pip install ARGS`` with the words of $PIP_ARGS, the versions of constraints.txt
and, where the build was given one, the secret ``ca``; without ARGS it installs what pyproject.toml
depends on. ``check`` refuses a torch for CUDA unless $TORCH_BUILD is "any".
"""

import os
import runpy
import shlex
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

CERTIFICATES = Path("/run/secrets/ca")


def install(arguments: list[str]) -> int:
    command = [sys.executable, "-m", "pip", "install", "-c", "constraints.txt"]
    command += shlex.split(os.environ.get("PIP_ARGS", ""))
    environment = dict(os.environ)
    if CERTIFICATES.is_file():
        # Not --cert: pip 23 does not hand that on when it fetches what the application builds with.
        environment["PIP_CERT"] = str(CERTIFICATES)
    command += arguments or dependencies()
    return subprocess.run(command, check=False, env=environment).returncode


def dependencies() -> list[str]:
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    return [str(wanted) for wanted in project["dependencies"]]


def check() -> int | str:
    # Not imported: a torch for CUDA cannot be, before its libraries are there.
    version = Path(sysconfig.get_path("purelib"), "torch", "version.py")
    cuda = runpy.run_path(str(version))["cuda"]
    if cuda is None or os.environ.get("TORCH_BUILD") == "any":
        return 0
    return (
        f"pip found a torch for CUDA {cuda}. Fix: name the index of torch's builds for processors "
        f"in --build-arg PIP_ARGS (docker/README.md), or give --build-arg TORCH_BUILD=any."
    )


if __name__ == "__main__":
    sys.exit(check() if sys.argv[1:] == ["check"] else install(sys.argv[2:]))
