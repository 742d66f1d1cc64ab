"""``python -m client_app.worker SOCKET PARENT``: one node's resident process.

Flower starts a process for every message. This one stays between them, with torch, the node's data
and its algorithms in memory, and answers over a Unix socket that only its own user can reach. It
ends with its parent (the process that starts the node's tasks), at a request to stop, when it was
idle for a while, and when the process that asked has gone before the answer: work that hangs ends
with the process that Flower gives up.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from select import select

from client_app.messages import Answer, Request, receive_request, send_answer, send_failure

STOP = "stop"
IDLE_SECONDS = 900.0
WATCH_SECONDS = 1.0


def main(arguments: Sequence[str]) -> int:
    """Answers requests one after the other until one of them stops it."""
    path, parent = Path(arguments[0]), int(arguments[1])
    watch = Watch(parent)
    threading.Thread(target=watch.run, args=(path,), daemon=True).start()
    with Listener(str(path), family="AF_UNIX") as listener:
        path.chmod(0o600)
        while True:
            with contextlib.suppress(EOFError, OSError), listener.accept() as connection:
                if not serve(connection, watch):
                    return 0


def serve(connection: Connection, watch: Watch) -> bool:
    """Answers one request; False when it was the request to stop."""
    request = receive_request(connection)
    if request.kind == STOP:
        send_answer(connection, Answer({}))
        return False
    watch.busy(connection)
    try:
        outcome: Answer | str = _answer(request)
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    finally:
        watch.idle()
    if isinstance(outcome, str):
        send_failure(connection, outcome)
    else:
        send_answer(connection, outcome)
    return True


def _answer(request: Request) -> Answer:
    from client_app.dispatch import answer

    return answer(request)


class Watch:
    """Ends the process when it is not needed any more, whatever the main thread is doing."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._idle_since = time.monotonic()
        self._asking: Connection | None = None

    def busy(self, connection: Connection) -> None:
        """The main thread works for the process at the other end of ``connection``."""
        self._asking = connection

    def idle(self) -> None:
        """The main thread waits for the next request."""
        self._asking = None
        self._idle_since = time.monotonic()

    def run(self, path: Path) -> None:
        """Watches until the process is not needed; removes its socket and ends it."""
        while alive(self._parent) and not self._needless():
            time.sleep(WATCH_SECONDS)
        path.unlink(missing_ok=True)
        os._exit(0)  # the main thread waits in accept, or works and its answer has no reader

    def _needless(self) -> bool:
        asking = self._asking
        if asking is None:
            return time.monotonic() - self._idle_since > IDLE_SECONDS
        with contextlib.suppress(OSError, ValueError):  # closed while we looked
            # Nothing more is ever said after a request, so what can be read is the end.
            return self._asking is asking and bool(select([asking.fileno()], [], [], 0)[0])
        return False


def alive(process: int) -> bool:
    """Whether ``process`` runs; not one that ended and was not waited for yet."""
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text("utf-8", "replace")
    except ProcessLookupError:
        return False
    except OSError:  # another user's, or a system without /proc
        return True
    return state.rpartition(")")[2].split()[0] != "Z"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
