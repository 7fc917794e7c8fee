# SPDX-License-Identifier: Apache-2.0
"""A self-describing frame around an array's bytes: magic, header, payload.

::

    4 bytes   b"ATL1"
    4 bytes   length of the header, little-endian
    header    JSON: codec, dtype, shape, and what the codec adds
    payload   to the end
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.errors import WireError

__all__ = ["pack", "unpack", "view"]

MAGIC = b"ATL1"
MAX_HEADER = 1 << 16
DTYPES = frozenset(
    ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "uint16", "bool"]
)


def pack(header: Mapping[str, Any], *payload: NDArray[Any]) -> bytes:
    """Join a header and arrays, in row-major order and little-endian."""
    text = json.dumps(dict(header), separators=(",", ":")).encode()
    parts = [np.ascontiguousarray(array).data.cast("B") for array in payload]
    return b"".join((MAGIC, len(text).to_bytes(4, "little"), text, *parts))


def unpack(frame: bytes) -> tuple[dict[str, Any], memoryview]:
    """Split a frame into its header and payload, without copying the payload.

    Raises
    ------
    WireError
        If the bytes are not a frame.
    """
    if len(frame) < 8 or frame[:4] != MAGIC:
        raise WireError(f"{len(frame)} bytes that do not begin with {MAGIC!r}")
    size = int.from_bytes(frame[4:8], "little")
    if size > min(MAX_HEADER, len(frame) - 8):
        raise WireError(f"a frame of {len(frame)} bytes claims a header of {size}")
    try:
        header = json.loads(frame[8 : 8 + size])
    except ValueError as error:
        raise WireError(f"a frame whose header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise WireError("a frame whose header is not a JSON object")
    return header, memoryview(frame)[8 + size :]


def view(
    payload: memoryview, dtype: object, shape: object, offset: int = 0
) -> NDArray[Any]:
    """Read an array of ``dtype`` and ``shape`` from a payload, without a copy.

    Raises
    ------
    WireError
        If dtype or shape are not allowed, or the payload is too short.
    """
    if dtype not in DTYPES:
        raise WireError(f"dtype {dtype!r}; allowed: {', '.join(sorted(DTYPES))}")
    if not isinstance(shape, list) or not all(
        isinstance(n, int) and 0 <= n < 2**40 for n in shape
    ):
        raise WireError(f"shape {shape!r}; it must be a list of lengths")
    kind, count = np.dtype(str(dtype)), math.prod(shape)
    if offset + count * kind.itemsize > len(payload):
        raise WireError(
            f"a payload of {len(payload)} bytes, too short for {dtype} {shape}"
        )
    flat = np.frombuffer(payload, kind, count, offset)
    return flat.reshape(shape)
