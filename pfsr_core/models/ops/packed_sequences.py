"""Packed (variable-length) sequences: histories without their padding, one after the other.

Most of an encoder works position by position and need not see padding at all. Packed, such
parts run on (T, E), T interactions in all, and only what mixes positions gets (B, L, E) back.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pfsr_core.models.ops.func_transforms import is_transformed

WORTH_IT = 0.95  # with more of the positions filled than this, packing costs more than it saves


@dataclass(frozen=True)
class PackedSequences:
    """Where T interactions lie among (B, L) positions; the padding is on the right.

    ``index`` (T,): their positions, row by row; ``shape``: (B, L); ``lengths`` (B,): of each row.
    """

    index: Tensor
    shape: tuple[int, int]
    lengths: Tensor

    def pack(self, x: Tensor) -> Tensor:
        """(B, L, E) to (T, E)."""
        return x.flatten(0, 1).index_select(0, self.index)

    def pad(self, x: Tensor) -> Tensor:
        """(T, E) to (B, L, E), zeros in between."""
        batch_size, seq_length = self.shape
        flat_rows = x.new_zeros(batch_size * seq_length, x.shape[1])
        padded_rows: Tensor = flat_rows.index_copy(0, self.index, x).unflatten(0, self.shape)
        return padded_rows


def find_packing(item_codes: Tensor) -> PackedSequences | None:
    """The packing of item codes (B, L), right-padded with 0; None where packing would not pay.

    None as well inside ``torch.func`` transforms: there a shape may not depend on values.
    """
    if is_transformed():
        return None
    is_item = item_codes > 0
    index = is_item.flatten().nonzero()[:, 0]
    if not 0 < len(index) < WORTH_IT * item_codes.numel():
        return None
    return PackedSequences(index, (item_codes.shape[0], item_codes.shape[1]), is_item.sum(1))
