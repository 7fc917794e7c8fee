# SPDX-License-Identifier: Apache-2.0
"""Codecs that send some numbers of each row; the others become zero.

Which they are is told by a bit for each number, and they themselves as
:class:`~atlas_flwr.wire.codecs.int8.Int8` has them: with an eighth of them 2 bits a
number and 4 bytes a row, where raw has 32.

Random top-k is after Zheng et al., "Reducing Communication for Split Learning by
Randomized Top-k Sparsification" (IJCAI 2023, arXiv 2305.18469), section 3.2: each of k
places falls to the others with a small chance. Theirs are activations alone, and the
gradient has their places; here each is chosen by itself, in evaluations, too.

Letters: R rows of N numbers, of which K are sent.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlas_flwr.errors import WireError
from atlas_flwr.types import Role
from atlas_flwr.wire.codecs.base import Codec, read, rows_of, tensor_of
from atlas_flwr.wire.codecs.int8 import Int8

__all__ = ["RandomTopK", "TopK"]


class TopK(Codec):
    """The eighth of a row that is largest, each with 8 bits.

    With K of N sent, the squared error of a row is at most 1 - K/N of its squared
    length, and K times the square of 1/254 of its largest magnitude; no single error is
    above the smallest number sent, or that 1/254.

    Attributes
    ----------
    share : float
        K/N, rounded up to a whole K.
    """

    name = "topk"
    rounded = Codec.rounded - {Role.LOGITS}  # 0 is no small one of these: it may win
    share = 1 / 8
    _values = Int8()

    def compress(self, values: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """Choose in each row, and say where."""
        rows = tensor_of(values).reshape(rows_of(values.shape))
        each = self._count(rows.shape[1])
        sent = self.choose(rows, each)
        chosen = rows[sent].reshape(len(rows), each).numpy()
        return np.packbits(sent.numpy(), axis=-1), *self._values.compress(chosen)

    def expand(
        self, payload: memoryview, shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """Put what was sent where it was."""
        count, width = rows_of(shape)
        size, each = math.ceil(width / 8), self._count(width)
        chosen = self._values.expand(payload[count * size :], (count, each))
        bits = read(payload[: count * size], "uint8", (count, size))
        sent = np.unpackbits(bits, axis=-1, count=width).astype(bool)
        if (sent.sum(-1) != each).any():
            raise WireError(f"a row of {width} numbers without the {each} that it has")
        rows = np.zeros((count, width), np.float32)
        rows[sent] = chosen.reshape(-1)
        return rows.reshape(shape)

    def choose(self, rows: Tensor, count: int) -> Tensor:
        """Return which numbers are sent, bool (R, N), ``count`` in each row."""
        return _marked(rows, rows.abs().topk(count).indices)

    def _count(self, width: int) -> int:
        return math.ceil(width * self.share)


class RandomTopK(TopK):
    """As :class:`TopK`, but each place falls to one of the others with a chance of 0.1.

    So that small numbers are sent at times, too. The squared error of a row is at most
    its squared length, and the same for what is sent. The choice is a function of the
    numbers alone, so that the same ones are always sent alike, to whoever asks again.

    Attributes
    ----------
    chance : float
        Of a place to fall to one of those that are not among the K largest.
    """

    name = "random-topk"
    chance = 0.1

    def choose(self, rows: Tensor, count: int) -> Tensor:
        """Return which numbers are sent, bool (R, N), ``count`` in each row."""
        source = torch.Generator().manual_seed(zlib.crc32(rows.numpy().data))
        largest = rows.abs().topk(count).indices
        falls = torch.rand(len(rows), count, generator=source) < self.chance
        falls &= falls.cumsum(-1) <= rows.shape[1] - count
        # As many of the others as places fall, evenly at random.
        order = torch.rand(rows.shape, generator=source)
        order = order.scatter(1, largest, torch.inf).argsort(-1)
        given = torch.arange(rows.shape[1]) < falls.sum(-1, keepdim=True)
        sent = torch.zeros(rows.shape, dtype=torch.bool)
        sent.scatter_(1, order, given)
        return sent.scatter_(1, largest, ~falls)


def _marked(rows: Tensor, places: Tensor) -> Tensor:
    return torch.zeros(rows.shape, dtype=torch.bool).scatter_(1, places, True)
