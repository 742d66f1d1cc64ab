"""Is the Flower process of this container well? Exit code 0 for yes; a line on stderr for no.

$PFSR_HEALTH_URL (default: the SuperNode's own port) has to answer; for https, $PFSR_HEALTH_CA is
the file of the authority that signed. With $PFSR_HEALTH_PEER (``host:port``) there has to be an
open connection to that port too: a SuperNode is well when it is connected with its SuperLink.
"""

import os
import ssl
import sys
import urllib.request
from pathlib import Path

SUPERNODE = "http://127.0.0.1:9094/health"
ESTABLISHED = "01"


def answers(url: str, authority: str | None) -> None:
    """Raises OSError unless ``url`` answers with success. Proxies are not asked."""
    trust = ssl.create_default_context(cafile=authority) if url.startswith("https:") else None
    handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)]
    with urllib.request.build_opener(*handlers).open(url, timeout=5):
        pass


def connected(port: int) -> bool:
    """Whether this container has an open TCP connection to ``port``, as Linux lists them."""
    lines = [
        line.split()
        for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
        if table.exists()
        for line in table.read_text("ascii").splitlines()[1:]
    ]
    return any(
        int(remote.rpartition(":")[2], 16) == port and state == ESTABLISHED
        for _, _, remote, state, *_ in lines
    )


def main() -> int | str:
    url = os.environ.get("PFSR_HEALTH_URL", SUPERNODE)
    try:
        answers(url, os.environ.get("PFSR_HEALTH_CA"))
    except OSError as error:
        return f"{url} does not answer: {error}"
    peer = os.environ.get("PFSR_HEALTH_PEER", "")
    if peer and not connected(int(peer.rpartition(":")[2])):
        return f"no open connection to {peer}"
    return 0


if __name__ == "__main__":
    sys.exit(main())
