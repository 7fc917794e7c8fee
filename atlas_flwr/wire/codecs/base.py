# SPDX-License-Identifier: Apache-2.0
"""What every codec is: how an array becomes bytes, by the role it plays.

Adapters and fingerprints always cross exactly; lossy codecs touch activations,
gradients and logits only, and of those only floating-point ones. NaN and infinity
survive, so that divergence stays visible.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlas_flwr.errors import WireError
from atlas_flwr.types import Role
from atlas_flwr.wire.frames import Entry, Segment, pack, unpack

__all__ = [
    "SMALLEST",
    "Codec",
    "read",
    "restored",
    "rows_of",
    "tensor_of",
    "widened",
]

_FLOATS = ("bfloat16", "float16", "float32", "float64")
_LARGEST = {kind: torch.finfo(getattr(torch, kind)).max for kind in _FLOATS[:2]}
SMALLEST = float(np.finfo(np.float32).tiny)  # that can be divided by


class Codec:
    """The identity. A lossy codec overrides :attr:`name` and two methods.

    Attributes
    ----------
    name : str
        Key in :data:`~atlas_flwr.wire.CODECS`; stands in every frame.
    rounded : frozenset[Role]
        What it may round, if it is lossy.
    """

    name = "raw"
    rounded = frozenset({Role.ACTIVATION, Role.GRADIENT, Role.LOGITS})

    def encode(self, array: NDArray[Any], role: Role) -> bytes:
        """Encode an array as a frame of one tensor.

        Parameters
        ----------
        array : NDArray
            Any shape of up to 8 dimensions; floating point, integer or bool.
        role : Role
            What it is.

        Raises
        ------
        WireError
            If the array is of another kind (complex, strings, objects).
        """
        return pack([self.segment("", array, role)])

    def decode(self, frame: bytes) -> NDArray[Any]:
        """Decode what :meth:`encode` of the codec of the same name made.

        Returns
        -------
        NDArray
            Of the shape and dtype that were encoded (bfloat16, which numpy lacks, as
            float32). Read-only where no decoding was necessary: a view of the frame.

        Raises
        ------
        WireError
            If the bytes are not a frame of one tensor, or of another codec.
        """
        entries = unpack(frame)
        if len(entries) != 1:
            raise WireError(f"a frame of {len(entries)} tensors, where 1 was expected")
        entry, payload = entries[0]
        if entry.codec not in (self.name, Codec.name):
            raise WireError(
                f"a frame of codec {entry.codec!r} came to {self.name!r}; both sides "
                "must be configured alike"
            )
        codec = self if entry.codec == self.name else Codec()
        return restored(codec, entry, payload)

    def segment(
        self, name: str, array: NDArray[Any], role: Role, dtype: str | None = None
    ) -> Segment:
        """Encode an array as part of a frame (see :mod:`atlas_flwr.wire.frames`).

        ``dtype`` is ``"bfloat16"`` where the array has its bits, as int16.
        """
        dtype = dtype or array.dtype.name
        lossy = type(self) is not Codec and role in self.rounded and dtype in _FLOATS
        arrays = self.compress(_as_float32(array, dtype)) if lossy else (array,)
        size = sum(part.nbytes for part in arrays)
        codec = self.name if lossy else Codec.name
        entry = Entry(name, role, codec, dtype, tuple(array.shape), size)
        return Segment(entry, arrays)

    def compress(self, values: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """Turn activations or gradients into arrays whose bytes are sent."""
        return (values,)

    def expand(
        self, payload: memoryview, shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """Turn those bytes into values of the shape that was compressed."""
        return read(payload, "float32", shape)


def restored(codec: Codec, entry: Entry, payload: memoryview) -> NDArray[Any]:
    """Decode a part of a frame with the codec that made it.

    Raises
    ------
    WireError
        If the payload has another length than the entry's shape needs.
    """
    if entry.codec != Codec.name:
        values = codec.expand(payload, entry.shape)
        if entry.dtype in _LARGEST:
            values = _within(values, _LARGEST[entry.dtype])
        narrow = entry.dtype in ("float16", "float64")
        return values.astype(entry.dtype) if narrow else values
    if entry.dtype == "bfloat16":
        return widened(read(payload, "uint16", entry.shape))
    return read(payload, entry.dtype, entry.shape)


def _within(values: NDArray[np.float32], largest: float) -> NDArray[np.float32]:
    """Keep what was a number one: a codec may round it up, beyond what dtypes hold."""
    if not (np.abs(values) > largest).any():
        return values
    kept = np.clip(values, -largest, largest)
    return np.where(np.isinf(values), values, kept).astype(np.float32, copy=False)


def read(payload: memoryview, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """View a payload as an array.

    Raises
    ------
    WireError
        If it has another length.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    needed = math.prod(shape) * kind.itemsize
    if len(payload) != needed:
        raise WireError(
            f"{len(payload)} bytes for {dtype} of shape {shape}, which has {needed}"
        )
    return np.frombuffer(payload, kind).reshape(shape)


def _as_float32(array: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    if dtype == "bfloat16":
        return widened(array.view(np.uint16))
    return array.astype(np.float32, copy=False)


def widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Read the bits of bfloat16, the upper halves of those of float32."""
    wide = bits.astype(np.uint32) << 16
    values: NDArray[np.float32] = wide.view(np.float32)
    return values


def tensor_of(array: NDArray[Any]) -> Tensor:
    """Share an array's memory, where torch can."""
    # torch warns of read-only arrays: it could write to them.
    return torch.from_numpy(
        np.require(array, array.dtype.newbyteorder("="), ["C", "W"])
    )


def rows_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return how many vectors of the last axis there are, and their width."""
    width = shape[-1] if shape else 1
    return math.prod(shape[:-1]), width
