"""One thread, no deadlines for hypothesis (machines are shared), and the paths tests may use."""

from __future__ import annotations

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")
