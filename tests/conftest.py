"""One thread, no deadlines for hypothesis (machines are shared), and the paths tests may use.

``make test-arithmetic`` runs the numerical tests as another processor would compute them:
``PFSR_TEST_THREADS`` sets how many threads torch has, and ``PFSR_TEST_PERTURBED`` moves the last
bits of random starts (``tests.helpers.perturbed``).
"""

from __future__ import annotations

import os

import torch
from hypothesis import settings

from tests.helpers.clock import clock
from tests.helpers.perturbed import perturb_starts

__all__ = ["clock"]

torch.set_num_threads(int(os.environ.get("PFSR_TEST_THREADS", "1")))
if share := float(os.environ.get("PFSR_TEST_PERTURBED", "0")):
    perturb_starts(share)
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")
