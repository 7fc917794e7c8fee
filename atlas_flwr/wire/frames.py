# SPDX-License-Identifier: Apache-2.0
"""Frames: one message of named tensors, which says itself what they are.

::

    4 bytes   magic, b"ATLF"
    2 bytes   version, little-endian
    4 bytes   length of the header, little-endian
    header    JSON: a list of entries (name, role, codec, dtype, shape, nbytes), padded
              with blanks
    payload   the entries' bytes, little-endian, in order; each starts at a multiple of
              16, counted from the frame's first byte, and nothing follows the last

Nothing in a frame is ever executed, and no length in it is believed before it is
checked against the bytes that are there.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.errors import WireError
from atlas_flwr.types import Role

__all__ = ["DTYPES", "Entry", "Segment", "pack", "unpack"]

MAGIC = b"ATLF"
VERSION = 1
MAX_HEADER = 1 << 16
MAX_DIMS = 8
_START = struct.Struct("<4sHI")
_ALIGN = 16

# What a tensor may be. numpy has no bfloat16: its bits travel as they are.
DTYPES = frozenset(
    {
        "bfloat16",
        "bool",
        "float16",
        "float32",
        "float64",
        "int16",
        "int32",
        "int64",
        "int8",
        "uint16",
        "uint8",
    }
)


@dataclass(frozen=True)
class Entry:
    """What a frame says of one tensor.

    Attributes
    ----------
    name : str
        Unique in its frame.
    role : Role
        What the tensor is.
    codec : str
        What made its bytes.
    dtype : str
        Of the tensor before it was encoded; one of :data:`DTYPES`.
    shape : tuple[int, ...]
        Likewise; at most 8 dimensions.
    nbytes : int
        Length of its payload.

    Raises
    ------
    WireError
        If it cannot be.
    """

    name: str
    role: Role
    codec: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise WireError(
                f"dtype {self.dtype!r}; allowed: {', '.join(sorted(DTYPES))}"
            )
        # Zeros aside, so that (0, 2**60) is refused as well.
        elements = math.prod(max(n, 1) for n in self.shape)
        if min((*self.shape, self.nbytes)) < 0 or elements >= 2**48:
            raise WireError(f"shape {self.shape} with {self.nbytes} bytes")
        if len(self.shape) > MAX_DIMS:
            raise WireError(
                f"{len(self.shape)} dimensions; at most {MAX_DIMS} are allowed"
            )


@dataclass(frozen=True)
class Segment:
    """An entry and the arrays whose bytes make its payload, one after the other."""

    entry: Entry
    arrays: Sequence[NDArray[Any]]


def pack(segments: Sequence[Segment]) -> bytes:
    """Make a frame; the arrays' bytes are copied once.

    Raises
    ------
    WireError
        If two entries have one name, or the header is too long.
    """
    entries = [segment.entry for segment in segments]
    if len({entry.name for entry in entries}) < len(entries):
        raise WireError(f"names {[e.name for e in entries]} are not unique")
    text = json.dumps([asdict(entry) for entry in entries], separators=(",", ":"))
    header = text.encode()
    header += b" " * (-(_START.size + len(header)) % _ALIGN)
    if len(header) > MAX_HEADER:
        raise WireError(f"a header of {len(header)} bytes; at most {MAX_HEADER}")
    start = _START.pack(MAGIC, VERSION, len(header))
    return b"".join((start, header, *_payload(segments)))


def unpack(frame: bytes | memoryview) -> list[tuple[Entry, memoryview]]:
    """Split a frame into its entries and their payloads, without copying.

    Raises
    ------
    WireError
        If the bytes are not a whole frame of this version.
    """
    view = memoryview(frame).toreadonly()
    offset, found = _start(view), []
    header = bytes(view[_START.size : offset])
    for entry in _entries(header):
        offset += -offset % _ALIGN
        if offset + entry.nbytes > len(view):
            raise WireError(
                f"a frame of {len(view)} bytes ends inside tensor {entry.name!r}"
            )
        found.append((entry, view[offset : offset + entry.nbytes]))
        offset += entry.nbytes
    if offset != len(view):
        raise WireError(f"a frame of {offset} bytes came with {len(view)}")
    if len({entry.name for entry, _ in found}) < len(found):
        raise WireError("a frame has two tensors of one name")
    return found


def _payload(segments: Sequence[Segment]) -> Iterator[bytes | memoryview]:
    behind = 0
    for segment in segments:
        yield b"\0" * (-behind % _ALIGN)
        for array in segment.arrays:
            yield _bytes_of(array)
        behind = segment.entry.nbytes


def _bytes_of(array: NDArray[Any]) -> memoryview:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    flat = np.ascontiguousarray(little).reshape(-1).view(np.uint8)
    return flat.data


def _start(view: memoryview) -> int:
    """Check what comes before the header; return where the header ends."""
    if len(view) < _START.size:
        raise WireError(f"{len(view)} bytes are too few for a frame")
    magic, version, size = _START.unpack(view[: _START.size])
    if magic != MAGIC:
        raise WireError(
            f"bytes that begin with {magic!r}; a frame begins with {MAGIC!r}"
        )
    if version != VERSION:
        raise WireError(
            f"a frame of version {version}; this library reads version {VERSION}: "
            "install the same release on both sides"
        )
    if size > min(MAX_HEADER, len(view) - _START.size):
        raise WireError(f"a frame of {len(view)} bytes claims a header of {size}")
    return _START.size + int(size)


def _entries(header: bytes) -> list[Entry]:
    try:
        rows = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise WireError(f"a frame whose header is not JSON: {error}") from None
    if not isinstance(rows, list):
        raise WireError("a frame whose header is not a list of entries")
    return [_entry(row) for row in rows]


def _entry(row: object) -> Entry:
    names = {field.name for field in fields(Entry)}
    if not isinstance(row, dict) or set(row) != names:
        raise WireError(f"a frame with an entry that has not the keys {sorted(names)}")
    words = [row["name"], row["role"], row["codec"], row["dtype"]]
    numbers = [row["shape"], row["nbytes"]]
    if not all(isinstance(word, str) for word in words) or not _are_lengths(*numbers):
        raise WireError(f"a frame with an entry of wrong types: {str(row)[:200]}")
    if row["role"] not in list(Role):
        raise WireError(f"role {row['role']!r}; allowed: {', '.join(Role)}")
    return Entry(**{**row, "role": Role(row["role"]), "shape": tuple(row["shape"])})


def _are_lengths(shape: object, nbytes: object) -> bool:
    if not isinstance(shape, list):
        return False
    return all(type(n) is int for n in (*shape, nbytes))
