"""``python -m tests.deployment.killable DIRECTORY [RUN]``: both apps in one process, to be killed.

Appends a word to DIRECTORY/events for every message that a node is about to get: its kind and its
round. That is written before the node works, so it names the round in flight.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from flwr.app import Message

from pfsr_core.assembly.settings import Settings
from server_app.run import print_results
from tests.integration.helpers import settings_in
from tests.integration.loopback import run_loopback

NODES, ROUNDS = 2, 150  # more than twenty lives take


def settings(directory: Path, resume: str = "") -> Settings:
    changes = {"federation__rounds": ROUNDS, "federation__participation": 0.5}
    return settings_in(directory, run__resume=resume, **changes)


def main(directory: Path, resume: str) -> None:
    torch.set_num_threads(1)
    events = os.open(directory / "events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def before(_partition: int, message: Message) -> None:
        word = f"{message.metadata.message_type} {message.metadata.group_id or 0}\n"
        os.write(events, word.encode())

    log, _grid = run_loopback(settings(directory, resume), directory, NODES, before=before)
    print_results(log)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(sys.argv[2:] or [""]))
