# SPDX-License-Identifier: Apache-2.0
"""A codec of 4 bits a number, scaled block by block."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from atlas_flwr.wire.codecs.base import (
    SMALLEST,
    Codec,
    read,
    rows_of,
    tensor_of,
    widened,
)

__all__ = ["Int4"]


class Int4(Codec):
    """4 bits, and 2 bytes a block of 32: error at most 1/13 of its largest magnitude.

    A block is 32 numbers of a row, the last maybe fewer. Its scale is bfloat16,
    rounded up, so that nothing is clipped; with an exact one the error were 1/14.
    Blocks whose largest magnitude is under 1e-36 become zero. 4.5 bits a number, where
    raw has 32.
    """

    name = "int4"
    block = 32

    def compress(self, values: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """Scale each block to [-7, 7], round, and put two numbers into a byte."""
        blocks = self._blocks(tensor_of(values))
        if not blocks.numel():
            return (np.zeros(len(blocks), np.uint16), np.zeros(0, np.uint8))
        scale = _rounded_up(blocks.abs().amax(-1) / 7)
        divisor = torch.where(scale == 0, torch.inf, scale)[:, None]
        steps = (blocks / divisor).round_().to(torch.int8) + 8
        packed = steps[:, ::2] << 4 | steps[:, 1::2]
        bits = scale.bfloat16().view(torch.int16).numpy().view(np.uint16)
        return bits, packed.view(torch.uint8).numpy()

    def expand(
        self, payload: memoryview, shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """Multiply by the blocks' scales."""
        rows, width = rows_of(shape)
        count = rows * math.ceil(width / self.block)
        scale = widened(read(payload[: 2 * count], "uint16", (count, 1)))
        packed = read(payload[2 * count :], "uint8", (count, self.block // 2))
        steps = np.stack([packed >> 4, packed & 15], axis=-1).astype(np.int8) - 8
        with np.errstate(invalid="ignore"):  # 0 x infinity, in a block that diverged
            values = steps.reshape(count, self.block).astype(np.float32) * scale
        filled = values.reshape(rows, count * self.block // max(rows, 1))
        whole: NDArray[np.float32] = filled[:, :width].reshape(shape)
        return whole

    def _blocks(self, values: Tensor) -> Tensor:
        """Return blocks as rows, filled up with zeros."""
        rows = values.reshape(rows_of(tuple(values.shape)))
        missing = -rows.shape[1] % self.block
        return F.pad(rows, (0, missing)).reshape(-1, self.block)


def _rounded_up(scale: Tensor) -> Tensor:
    """Round to bfloat16, never down; what is too small to divide by becomes zero."""
    near = scale.bfloat16().float()
    bits = scale.view(torch.int32)
    above = ((bits >> 16) + 1 << 16).view(torch.float32)
    up = torch.where(near < scale, above, near)
    return torch.where(up < SMALLEST, 0.0, up)
