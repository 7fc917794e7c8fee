# SPDX-License-Identifier: Apache-2.0
"""A codec of 8 bits a number, scaled row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atlas_flwr.wire.codecs.base import SMALLEST, Codec, read, rows_of, tensor_of

__all__ = ["Int8"]


class Int8(Codec):
    """8 bits and a scale a row: error at most 1/254 of the row's largest magnitude.

    A row is a vector of the last axis, e.g. a token's hidden state. Rows whose largest
    magnitude is under 1.5e-36 become zero.
    """

    name = "int8"

    def compress(self, values: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """Scale each row to [-127, 127] and round."""
        rows = tensor_of(values).reshape(rows_of(values.shape))
        if not rows.numel():
            return (np.zeros(len(rows), np.float32), np.zeros(rows.shape, np.int8))
        scale = torch.maximum(rows.amax(-1), -rows.amin(-1)) / 127
        scale = torch.where(scale < SMALLEST, 0.0, scale)
        divisor = torch.where(scale == 0, torch.inf, scale)[:, None]
        return scale.numpy(), (rows / divisor).round_().to(torch.int8).numpy()

    def expand(
        self, payload: memoryview, shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """Multiply by the rows' scales."""
        count, width = rows_of(shape)
        scale = read(payload[: 4 * count], "float32", (count, 1))
        steps = read(payload[4 * count :], "int8", (count, width))
        with np.errstate(invalid="ignore"):  # 0 x infinity, in a row that diverged
            values: NDArray[np.float32] = steps.astype(np.float32) * scale
        return values.reshape(shape)
