"""Griffe extension: Sphinx roles in docstrings, such as ``:func:`name```, become plain code."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:py:)?(?:mod|func|class|meth|attr|data|exc|obj):`~?\.?([^`]+)`")


class PlainRoles(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_kwargs: Any) -> None:
        """Called by griffe for every object that it has read."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
