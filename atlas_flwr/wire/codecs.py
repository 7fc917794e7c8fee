# SPDX-License-Identifier: Apache-2.0
"""Codecs: how an array becomes bytes, by the role it plays.

Adapters and fingerprints always cross exactly; lossy codecs touch activations and
gradients only, and of those only floating-point ones. NaN and infinity
survive, so that divergence stays visible.

To add a codec, derive from :class:`Codec`, give it a name, override ``compress`` and
``expand``, and add it to :data:`CODECS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from atlas_flwr.errors import WireError
from atlas_flwr.types import Role
from atlas_flwr.wire.frames import Entry, Segment, pack, unpack

__all__ = ["CODECS", "Codec", "codec_named", "restored"]

_CROSSING = (Role.ACTIVATION, Role.GRADIENT)
_FLOATS = ("bfloat16", "float16", "float32", "float64")
_HALF_MAX = 65504.0
_SMALLEST = float(np.finfo(np.float32).tiny)


class Codec:
    """The identity. A lossy codec overrides :attr:`name` and two methods.

    Attributes
    ----------
    name : str
        Key in :data:`CODECS`; stands in every frame.
    """

    name = "raw"

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
        codec = self if entry.codec == self.name else CODECS[Codec.name]
        return restored(codec, entry, payload)

    def segment(
        self, name: str, array: NDArray[Any], role: Role, dtype: str | None = None
    ) -> Segment:
        """Encode an array as part of a frame (see :mod:`atlas_flwr.wire.frames`).

        ``dtype`` is ``"bfloat16"`` where the array has its bits, as int16.
        """
        dtype = dtype or array.dtype.name
        lossy = type(self) is not Codec and role in _CROSSING and dtype in _FLOATS
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


class Half(Codec):
    """IEEE half precision: 2 bytes, relative error 2^-11 in +-[6.1e-5, 65504].

    Larger values become +-65504; smaller ones err by at most 2^-25.
    """

    name = "fp16"

    def compress(self, values: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """Round to nearest, ties to even."""
        tensor = _tensor(values)
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
        return (_tensor(values).bfloat16().view(torch.int16).numpy(),)

    def expand(
        self, payload: memoryview, shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """Widen to single precision."""
        return _widened(read(payload, "uint16", shape))


class Int8(Codec):
    """8 bits and a scale a row: error at most 1/254 of the row's largest magnitude.

    A row is a vector of the last axis, e.g. a token's hidden state. Rows whose largest
    magnitude is under 1.5e-36 become zero.
    """

    name = "int8"

    def compress(self, values: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """Scale each row to [-127, 127] and round."""
        rows = _tensor(values).reshape(_rows(values.shape))
        if not rows.numel():
            return (np.zeros(len(rows), np.float32), np.zeros(rows.shape, np.int8))
        scale = torch.maximum(rows.amax(-1), -rows.amin(-1)) / 127
        scale = torch.where(scale < _SMALLEST, 0.0, scale)
        divisor = torch.where(scale == 0, torch.inf, scale)[:, None]
        return scale.numpy(), (rows / divisor).round_().to(torch.int8).numpy()

    def expand(
        self, payload: memoryview, shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """Multiply by the rows' scales."""
        count, width = _rows(shape)
        scale = read(payload[: 4 * count], "float32", (count, 1))
        steps = read(payload[4 * count :], "int8", (count, width))
        with np.errstate(invalid="ignore"):  # 0 x infinity, in a row that diverged
            values: NDArray[np.float32] = steps.astype(np.float32) * scale
        return values.reshape(shape)


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
        blocks = self._blocks(_tensor(values))
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
        rows, width = _rows(shape)
        count = rows * math.ceil(width / self.block)
        scale = _widened(read(payload[: 2 * count], "uint16", (count, 1)))
        packed = read(payload[2 * count :], "uint8", (count, self.block // 2))
        steps = np.stack([packed >> 4, packed & 15], axis=-1).astype(np.int8) - 8
        with np.errstate(invalid="ignore"):  # 0 x infinity, in a block that diverged
            values = steps.reshape(count, self.block).astype(np.float32) * scale
        filled = values.reshape(rows, count * self.block // max(rows, 1))
        whole: NDArray[np.float32] = filled[:, :width].reshape(shape)
        return whole

    def _blocks(self, values: Tensor) -> Tensor:
        """Return blocks as rows, filled up with zeros."""
        rows = values.reshape(_rows(tuple(values.shape)))
        missing = -rows.shape[1] % self.block
        return F.pad(rows, (0, missing)).reshape(-1, self.block)


CODECS: Mapping[str, Codec] = {
    codec.name: codec for codec in (Codec(), Half(), Brain(), Int8(), Int4())
}


def codec_named(name: str) -> Codec:
    """Return a codec.

    Raises
    ------
    WireError
        If there is none of that name.
    """
    if name not in CODECS:
        raise WireError(f"codec {name!r}; allowed: {', '.join(CODECS)}")
    return CODECS[name]


def restored(codec: Codec, entry: Entry, payload: memoryview) -> NDArray[Any]:
    """Decode a part of a frame with the codec that made it.

    Raises
    ------
    WireError
        If the payload has another length than the entry's shape needs.
    """
    if entry.codec != Codec.name:
        values = codec.expand(payload, entry.shape)
        narrow = entry.dtype in ("float16", "float64")
        return values.astype(entry.dtype) if narrow else values
    if entry.dtype == "bfloat16":
        return _widened(read(payload, "uint16", entry.shape))
    return read(payload, entry.dtype, entry.shape)


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
        return _widened(array.view(np.uint16))
    return array.astype(np.float32, copy=False)


def _widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Read the bits of bfloat16, the upper halves of those of float32."""
    wide = bits.astype(np.uint32) << 16
    values: NDArray[np.float32] = wide.view(np.float32)
    return values


def _tensor(array: NDArray[Any]) -> Tensor:
    # torch warns of read-only arrays: it could write to them.
    return torch.from_numpy(
        np.require(array, array.dtype.newbyteorder("="), ["C", "W"])
    )


def _rounded_up(scale: Tensor) -> Tensor:
    """Round to bfloat16, never down; what is too small to divide by becomes zero."""
    near = scale.bfloat16().float()
    bits = scale.view(torch.int32)
    above = ((bits >> 16) + 1 << 16).view(torch.float32)
    up = torch.where(near < scale, above, near)
    return torch.where(up < _SMALLEST, 0.0, up)


def _saturated(tensor: Tensor) -> Tensor:
    """Bring finite values into the range of half precision."""
    if not tensor.numel():
        return tensor
    low, high = tensor.aminmax()
    if low >= -_HALF_MAX and high <= _HALF_MAX:
        return tensor
    return torch.where(tensor.isinf(), tensor, tensor.clamp(-_HALF_MAX, _HALF_MAX))


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    width = shape[-1] if shape else 1
    return math.prod(shape[:-1]), width
