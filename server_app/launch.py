"""Refuses ``python -m server_app.launch``, which is ``pfsr run`` now. Not part of the bundle."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.stderr.write(
        "error: python -m server_app.launch is pfsr run now. Fix: pfsr run RECIPE key=value ..., "
        "e.g. pfsr run pfsr federation.rounds=5\n"
    )
    sys.exit(2)
