"""PFSR: personalized federated sequential recommendation.

    import pfsr

    model = pfsr.fit(log, clients="shop")     # a DataFrame with user, item, time, shop
    model.recommend("user-17", k=5)           # a DataFrame with item, score, title
    model.evaluate()                          # per method and client, with baselines
    model.save("shops")
    pfsr.load("shops")

Everything heavy is imported when it is first used, so that ``import pfsr`` is quick.
"""

from __future__ import annotations

import importlib
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pfsr import datasets
    from pfsr.fitting import fit
    from pfsr.model import Model, load
    from pfsr_core.data.errors import DataError
    from pfsr_core.runs.model_files import ModelFilesError
    from pfsr_core.serving.served_model import RecommendationError
    from pfsr_core.settings.fields import SettingsError

__all__ = [
    "DataError",
    "Model",
    "ModelFilesError",
    "RecommendationError",
    "SettingsError",
    "datasets",
    "fit",
    "load",
]

_MODULE_OF_NAME = {
    "DataError": "pfsr_core.data.errors",
    "Model": "pfsr.model",
    "ModelFilesError": "pfsr_core.runs.model_files",
    "RecommendationError": "pfsr_core.serving.served_model",
    "SettingsError": "pfsr_core.settings.fields",
    "fit": "pfsr.fitting",
    "load": "pfsr.model",
}


def __getattr__(attribute_name: str) -> Any:
    if attribute_name == "datasets":
        return importlib.import_module("pfsr.datasets")
    if attribute_name not in _MODULE_OF_NAME:
        raise AttributeError(f"module 'pfsr' has no attribute {attribute_name!r}")
    random_state = random.getstate()  # which imports may change
    try:
        return getattr(importlib.import_module(_MODULE_OF_NAME[attribute_name]), attribute_name)
    finally:
        random.setstate(random_state)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
