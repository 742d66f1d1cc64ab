"""The facts about a log and its split that belong beside every result."""

from __future__ import annotations

from typing import Any

import numpy as np

from pfsr_core.data.interactions import Interactions
from pfsr_core.data.splits import FEWEST_INTERACTIONS, Split, time_order

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def describe(interactions: Interactions, split: Split) -> dict[str, Any]:
    """Counts, history lengths and the hash of the split, ready for JSON.

    ``history_length`` covers all users; ``tied_last_pair`` is the share of split users whose last
    two interactions have one timestamp; ``head_share`` is the share of interactions that fall on
    the most popular tenth of the items.
    """
    num_users, num_items = len(interactions.user_ids), len(interactions.item_ids)
    lengths = np.bincount(interactions.users, minlength=num_users)
    return {
        "source": interactions.source,
        "users": num_users,
        "items": num_items,
        "interactions": len(interactions),
        "density": len(interactions) / (num_users * num_items),
        "history_length": {
            f"{q:g}": float(np.quantile(lengths, q, method="lower")) for q in QUANTILES
        },
        "mean_history_length": float(lengths.mean()),
        "head_share": _head_share(interactions),
        "tied_last_pair": tied_last_pair(interactions),
        "titles": len(interactions.titles),
        "columns": sorted(interactions.columns),
        "protocol": split.protocol,
        "split_users": len(split.users),
        "skipped_users": split.num_skipped,
        "split_digest": split.digest,
    }


def tied_last_pair(interactions: Interactions) -> float:
    """Share of the users with three interactions whose last two have one timestamp."""
    order, starts = time_order(interactions)
    ends = np.append(starts[1:], len(order))
    long_enough = ends - starts >= FEWEST_INTERACTIONS
    sorted_times, last_rows = interactions.timestamps[order], ends[long_enough] - 1
    return float((sorted_times[last_rows] == sorted_times[last_rows - 1]).mean())


def _head_share(interactions: Interactions) -> float:
    counts = np.sort(np.bincount(interactions.items)[1:])[::-1]
    head_size = max(1, len(interactions.item_ids) // 10)
    return float(counts[:head_size].sum() / counts.sum())
