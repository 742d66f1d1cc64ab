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

from client_app.messages import Answer, receive_request, send_answer, send_failure

STOP = "stop"
IDLE_SECONDS = 900.0
WATCH_SECONDS = 1.0


def main(arguments: Sequence[str]) -> int:
    """Answers requests one after the other until one of them stops the worker.

    Args:
        arguments: The path of the socket, and the id of the parent process.

    Returns:
        The exit code.
    """
    socket_path, parent_pid = Path(arguments[0]), int(arguments[1])
    watch = Watch(parent_pid)
    threading.Thread(target=watch.run, args=(socket_path,), daemon=True).start()
    with Listener(str(socket_path), family="AF_UNIX") as listener:
        socket_path.chmod(0o600)
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
        from client_app.dispatch import answer

        request_outcome: Answer | str = answer(request)
    except Exception as error:
        request_outcome = f"{type(error).__name__}: {error}"
    finally:
        watch.idle()
    if isinstance(request_outcome, str):
        send_failure(connection, request_outcome)
    else:
        send_answer(connection, request_outcome)
    return True


class Watch:
    """Ends the process when it is not needed any more, whatever the main thread is doing."""

    def __init__(self, parent_pid: int) -> None:
        """Watches for the end of the process ``parent_pid`` among other reasons."""
        self._parent = parent_pid
        self._idle_since = time.monotonic()
        self._asking: Connection | None = None

    def busy(self, connection: Connection) -> None:
        """The main thread works for the process at the other end of ``connection``."""
        self._asking = connection

    def idle(self) -> None:
        """The main thread waits for the next request."""
        self._asking = None
        self._idle_since = time.monotonic()

    def run(self, socket_path: Path) -> None:
        """Watches until the process is not needed; removes its socket and ends it."""
        while alive(self._parent) and not self._needless():
            time.sleep(WATCH_SECONDS)
        socket_path.unlink(missing_ok=True)
        os._exit(0)  # the main thread waits in accept, or works and its answer has no reader

    def _needless(self) -> bool:
        requester = self._asking
        if requester is None:
            return time.monotonic() - self._idle_since > IDLE_SECONDS
        with contextlib.suppress(OSError, ValueError):  # closed while we looked
            # Nothing follows a request, so a readable connection means that its end was closed.
            return self._asking is requester and bool(select([requester.fileno()], [], [], 0)[0])
        return False


def alive(process_id: int) -> bool:
    """Whether ``process_id`` runs; not one that ended and was not waited for yet."""
    try:
        os.kill(process_id, 0)
        process_stat = Path(f"/proc/{process_id}/stat").read_text("utf-8", "replace")
    except ProcessLookupError:
        return False
    except OSError:  # another user's, or a system without /proc
        return True
    return process_stat.rpartition(")")[2].split()[0] != "Z"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
