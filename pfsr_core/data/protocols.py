"""Named protocols: which of tied interactions is the last, and what a training negative may be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """``first_is_last``: of a user's interactions at one time the first in the file counts as last.

    ``exclude_held_out_negatives``: what is labelled 0 in training is never a held-out item. That
    gives them away: an item that is never drawn is the answer.
    """

    name: str
    first_is_last: bool
    exclude_held_out_negatives: bool


STRICT = Protocol("strict", first_is_last=False, exclude_held_out_negatives=False)
PAPER_PFEDREC = Protocol("paper-pfedrec", first_is_last=True, exclude_held_out_negatives=True)
"""As in the code released with PFedRec (Zhang et al., IJCAI 2023), and NCF before it. It leaks."""

PROTOCOLS = {protocol.name: protocol for protocol in (STRICT, PAPER_PFEDREC)}
