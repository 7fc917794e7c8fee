# SPDX-License-Identifier: Apache-2.0
"""Codecs: how an array becomes bytes, by the role it plays.

Adapters and fingerprints always cross exactly; the lossy codecs touch activations and
gradients only, and only floating-point ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.errors import WireError
from atlas_flwr.types import Role
from atlas_flwr.wire.frames import pack, unpack, view

__all__ = ["CODECS", "Codec", "codec_named"]

_CROSSING = (Role.ACTIVATION, Role.GRADIENT)


class Codec:
    """The identity: row-major little-endian bytes. Other codecs override two methods.

    Attributes
    ----------
    name : str
        Key in :data:`CODECS`; stands in every frame.
    """

    name = "raw"

    def encode(self, array: NDArray[Any], role: Role) -> bytes:
        """Encode an array.

        Parameters
        ----------
        array : NDArray
            Any shape; floating point, integer or bool.
        role : Role
            What it is.
        """
        if role in _CROSSING and array.dtype in (np.float32, np.float64):
            return self.encode_crossing(array)
        return _raw(array)

    def decode(self, frame: bytes) -> NDArray[Any]:
        """Decode what :meth:`encode` of the codec of the same name made.

        Raises
        ------
        WireError
            If the bytes are not a frame, or of another codec.
        """
        header, payload = unpack(frame)
        if header.get("codec") == Codec.name:
            return view(payload, header.get("dtype"), header.get("shape"))
        if header.get("codec") != self.name:
            raise WireError(
                f"a frame of codec {header.get('codec')!r} came to {self.name!r}; both "
                "sides must be configured alike"
            )
        return self.decode_crossing(header, payload)

    def encode_crossing(self, array: NDArray[Any]) -> bytes:
        """Encode float activations or gradients."""
        return _raw(array)

    def decode_crossing(
        self, header: Mapping[str, Any], payload: memoryview
    ) -> NDArray[Any]:
        """Decode them."""
        return view(payload, header.get("dtype"), header.get("shape"))


class Half(Codec):
    """IEEE half precision: 2 bytes, relative error 2^-11 in +-[6e-5, 65504]."""

    name = "fp16"

    def encode_crossing(self, array: NDArray[Any]) -> bytes:
        """Round to half precision; larger values become the largest one."""
        limit = float(np.finfo(np.float16).max)
        half = np.clip(array, -limit, limit).astype(np.float16)
        return pack(_header(self.name, half.dtype.name, array), half)

    def decode_crossing(
        self, header: Mapping[str, Any], payload: memoryview
    ) -> NDArray[Any]:
        """Widen to single precision."""
        return view(payload, "float16", header.get("shape")).astype(np.float32)


class Brain(Codec):
    """bfloat16: 2 bytes, relative error 2^-8, range of single precision."""

    name = "bf16"

    def encode_crossing(self, array: NDArray[Any]) -> bytes:
        """Round to nearest, ties to even."""
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        return pack(
            _header(self.name, "uint16", array), (rounded >> 16).astype(np.uint16)
        )

    def decode_crossing(
        self, header: Mapping[str, Any], payload: memoryview
    ) -> NDArray[Any]:
        """Widen to single precision."""
        bits = view(payload, "uint16", header.get("shape")).astype(np.uint32) << 16
        return bits.view(np.float32)


class Int8(Codec):
    """8 bits with a scale a row: error at most half of 1/127 of the row's maximum."""

    name = "int8"

    def encode_crossing(self, array: NDArray[Any]) -> bytes:
        """Scale each vector of the last axis to [-127, 127] and round."""
        rows = np.atleast_1d(np.asarray(array, np.float32))
        scale = np.abs(rows).max(-1, keepdims=True, initial=0.0) / 127
        quantised = np.rint(rows / np.where(scale == 0, 1, scale)).astype(np.int8)
        return pack(
            _header(self.name, "int8", rows), scale.astype(np.float32), quantised
        )

    def decode_crossing(
        self, header: Mapping[str, Any], payload: memoryview
    ) -> NDArray[Any]:
        """Multiply by the rows' scales."""
        shape = header.get("shape")
        if not isinstance(shape, list) or not shape:
            raise WireError(f"shape {shape!r} of an int8 frame")
        scale = view(payload, "float32", [*shape[:-1], 1])
        quantised = view(payload, "int8", shape, offset=scale.nbytes)
        return quantised.astype(np.float32) * scale


CODECS: Mapping[str, Codec] = {
    codec.name: codec for codec in (Codec(), Half(), Brain(), Int8())
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


def _header(codec: str, dtype: str, array: NDArray[Any]) -> dict[str, Any]:
    return {"codec": codec, "dtype": dtype, "shape": list(array.shape)}


def _raw(array: NDArray[Any]) -> bytes:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return pack(_header(Codec.name, array.dtype.name, array), little)
