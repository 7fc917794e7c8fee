# SPDX-License-Identifier: Apache-2.0
"""Codecs of half precision: each number in two bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlas_flwr.wire.codecs.base import Codec, read, tensor_of, widened

__all__ = ["Brain", "Half"]

_HALF_MAX = 65504.0


class Half(Codec):
    """IEEE half precision: 2 bytes, relative error 2^-11 in +-[6.1e-5, 65504].

    Larger values become +-65504; smaller ones err by at most 2^-25.
    """

    name = "fp16"

    def compress(self, values: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """Round to nearest, ties to even."""
        tensor = tensor_of(values)
        return (_saturated(tensor).half().numpy(),)

    def expand(
        self, payload: memoryview, shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """Widen to single precision."""
        values: NDArray[np.float32] = read(payload, "float16", shape).astype(np.float32)
        return values


class Brain(Codec):
    """bfloat16: 2 bytes, relative error 2^-8, range of single precision."""

    name = "bf16"

    def compress(self, values: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """Round to nearest, ties to even."""
        return (tensor_of(values).bfloat16().view(torch.int16).numpy(),)

    def expand(
        self, payload: memoryview, shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """Widen to single precision."""
        return widened(read(payload, "uint16", shape))


def _saturated(tensor: Tensor) -> Tensor:
    """Bring finite values into the range of half precision."""
    if not tensor.numel():
        return tensor
    low, high = tensor.aminmax()
    if low >= -_HALF_MAX and high <= _HALF_MAX:
        return tensor
    return torch.where(tensor.isinf(), tensor, tensor.clamp(-_HALF_MAX, _HALF_MAX))
