# SPDX-License-Identifier: Apache-2.0
"""Texts behind one another in a row, so that a pass runs on real positions alone.

A row holds several texts, and none reads another. Transformers keeps them apart where
positions begin at 0 again, in causal models that are told positions; others are given a
mask. What a model makes of a text is then the same as alone, to float rounding. Which
way is right for a trunk, if any, is tried once.

Letters: B texts of T positions, N of them real; R packed rows of L positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atlas_flwr.split.passes import takes_positions
from atlas_flwr.trunk.engine.joining_check import alike, last_block, run_watched
from atlas_flwr.types import TrunkCall
from atlas_flwr.wire.padding import spare_mask

if TYPE_CHECKING:
    from atlas_flwr.trunk.engine.base import SharedBase

__all__ = ["Apart", "Packing", "packing_of", "texts_apart"]

LONGEST = 512  # positions of a packed row, unless a text alone is longer
WORTH = 0.9  # positions of packed rows, at most, for each that was padded
FREE = 4096  # positions of a pass in which a GPU is busier with launches than with them


class Apart(StrEnum):
    """What keeps the texts of a row apart."""

    POSITIONS = "positions"
    MASK = "mask"  # each position reads all of its text
    CAUSAL_MASK = "causal mask"  # and here, those up to itself


@dataclass(frozen=True)
class Packing:
    """Where each real position of a batch of texts goes.

    Attributes
    ----------
    places : Tensor
        Shape (N,), int64: the place of each real position among R x L, in the order in
        which the mask has them.
    positions : Tensor
        Shape (R, L), int64: from 0 in each text. What no text takes counts from 0, too,
        as a text of its own.
    texts : Tensor
        Shape (R, L), int64: a number for each text, another for each rest.
    """

    places: Tensor
    positions: Tensor
    texts: Tensor

    @classmethod
    def of(cls, real: Tensor, longest: int = LONGEST) -> Packing:
        """Pack texts, the longest first, each into the first row with room for it.

        Parameters
        ----------
        real : Tensor
            Bool, shape (B, T).
        longest : int
            Positions of a row, if no text has more.
        """
        lengths = real.sum(1).tolist()
        width = max(longest, *lengths)
        used: list[int] = []
        starts = [0] * len(lengths)
        for text in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            length = lengths[text]
            row = next((r for r, n in enumerate(used) if n + length <= width), None)
            if row is None:
                row = len(used)
                used.append(0)
            starts[text] = row * width + used[row]
            used[row] += length
        tight = max(used)
        parts, positions = [], torch.zeros(len(used), tight, dtype=torch.long)
        texts = torch.full_like(positions, len(lengths))
        for row, taken in enumerate(used):
            positions[row, taken:] = torch.arange(tight - taken)
        for text, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            row, first = divmod(start, width)
            counted = torch.arange(length)
            positions[row, first : first + length] = counted
            texts[row, first : first + length] = text
            parts.append(row * tight + first + counted)
        return cls(torch.cat(parts), positions, texts)

    def inputs(self, apart: Apart, like: Tensor) -> dict[str, Tensor]:
        """Return what a model is given beside the rows.

        Parameters
        ----------
        apart : Apart
            What keeps its texts apart.
        like : Tensor
            On its device, and of its dtype.
        """
        if apart is Apart.POSITIONS:
            return {"position_ids": self.positions.to(like.device)}
        reads = self.texts[:, :, None] == self.texts[:, None, :]
        if apart is Apart.CAUSAL_MASK:
            reads = reads.tril()
        mask = torch.zeros(reads.shape, dtype=like.dtype)
        mask.masked_fill_(~reads, torch.finfo(like.dtype).min)
        return {"attention_mask": mask[:, None].to(like.device)}

    def packed(self, rows: Tensor) -> Tensor:
        """Put rows (N, D) to their places in (R, L, D); zeros elsewhere."""
        flat = rows.new_zeros(self.positions.numel(), rows.shape[-1])
        flat[self.places] = rows
        return flat.reshape(*self.positions.shape, rows.shape[-1])

    def unpacked(self, values: Tensor) -> Tensor:
        """Return the rows (N, D) of values (R, L, D)."""
        return values.flatten(0, 1)[self.places]


def packing_of(call: TrunkCall) -> tuple[Packing, Tensor] | None:
    """Return how to pack a call, and its mask as bool, if that is right and worth it.

    It is right where nobody reads padding, which its caller knows, and positions, if
    the model is told any, count from 0 in each text.
    """
    if call.hidden.is_cuda and call.hidden.shape[:2].numel() <= FREE:
        return None
    real = spare_mask(call.attention_mask)
    if real is None or not bool(real.any(1).all()):
        return None
    counted, given = real.cumsum(1) - 1, call.position_ids
    if given is not None and not torch.equal(
        given.cpu().expand_as(real)[real], counted[real]
    ):
        return None
    packing = Packing.of(real)
    worth = packing.positions.numel() <= WORTH * real.numel()
    return (packing, real) if worth else None


@torch.no_grad()
def texts_apart(base: SharedBase) -> Apart | None:
    """Compare two texts in one row with each alone, by each way to keep them apart.

    Parameters
    ----------
    base : SharedBase
        The trunk's blocks; none of their weights changes.

    Returns
    -------
    Apart, optional
        The first by which the answers are equal, to the rounding of the base's dtype.
    """
    blocks = base.info.start, last_block(base)
    if blocks[0] == blocks[1]:
        return None
    real = torch.tensor([[True, True, True], [False, True, True]])
    packing = Packing.of(real)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, base.width, generator=generator).to(base.reference_tensor)
    ways = [Apart.POSITIONS] if takes_positions(base.trunk.base_model) else []
    if not _is_local(base):
        ways += [Apart.MASK, Apart.CAUSAL_MASK]
    alone = [rows[:3], rows[3:]]
    wanted = [run_watched(base, blocks, text[None])[0][0] for text in alone]
    for apart in ways:
        given = packing.inputs(apart, rows)
        try:
            found, _ = run_watched(base, blocks, packing.packed(rows), **given)
        except (IndexError, RuntimeError, TypeError, ValueError):
            continue  # it takes no such mask (BLOOM counts positions by its own)
        got = packing.unpacked(found)
        pairs = zip((got[:3], got[3:]), wanted, alone, strict=True)
        if all(alike(*pair) for pair in pairs):
            return apart
    return None


def _is_local(base: SharedBase) -> bool:
    """Tell whether some layers read near positions only, which one mask would undo."""
    described = base.trunk.config.get_text_config().to_dict()
    return any(
        bool(value) and any(word in key for word in ("window", "local", "chunk"))
        for key, value in described.items()
    )
