# SPDX-License-Identifier: Apache-2.0
r"""Sums of sketches of which no single one can be read.

Every two clients i < j have a secret key. Each client sends

.. math:: y_i = \lfloor 2^{20} x_i \rceil
    + \sum_{j > i} G(k_{ij}) - \sum_{j < i} G(k_{ji}) \pmod{2^{32}}

with G a stream of uniform 32-bit words. A y alone is uniform, whatever x is, and so are
any but all of them together; in the sum of all, the masks cancel (Bonawitz et al. 2017,
"Practical secure aggregation", section 4; without its recovery of clients that drop
out: where one is missing the sum is noise, and the clients ask anew among themselves).
A server gets by it what clustering subtracts, the mean of all sketches, and with the
clients of one cluster as the group that cluster's centroid; not who is near to whom.

G is SHAKE-256 of key and purpose. How keys are agreed upon is not done here: any
Diffie-Hellman exchange through the server will do, as that of
:mod:`atlas_flwr.client_apps.secure`, which sums whole updates in words of 64 bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.errors import DataError

__all__ = ["masked", "unmasked_sum", "with_masks"]

_SCALE = 1 << 20
_KEY_BYTES = 16
_CHUNK = 1 << 18  # words of a mask that are made at once

Words = TypeVar("Words", np.uint32, np.uint64)


def masked(
    sketch: NDArray[np.floating],
    client: str,
    keys: Mapping[str, bytes],
    *,
    purpose: str,
) -> NDArray[np.uint32]:
    """Hide a sketch so that it can only be read in the sum of its group.

    Parameters
    ----------
    sketch : NDArray
        Any shape, entries in [-1, 1]; kept to about six decimals.
    client : str
        Whose it is.
    keys : Mapping[str, bytes]
        Key shared with every other client of the group, 16 bytes at least each.
    purpose : str
        What the sum is for, e.g. ``"run 7, round 3, mean"``; the same for the whole
        group, and never used twice: two vectors under one mask can be subtracted.

    Returns
    -------
    NDArray
        Of the sketch's shape, uint32: as many bytes as float32 takes.

    Raises
    ------
    DataError
        If an entry is not in [-1, 1], there is no other client, or a key is short.
    """
    values = np.asarray(sketch, np.float64)
    if not (np.abs(values) <= 1).all():
        raise DataError(
            "a sketch to be summed has entries in [-1, 1]; scale it to unit norm first"
        )
    words = np.rint(values * _SCALE).astype(np.int64).astype(np.uint32)
    return with_masks(words, client, keys, purpose=purpose)


def unmasked_sum(shares: Iterable[NDArray[np.uint32]]) -> NDArray[np.float64]:
    """Add the masked sketches of a whole group: the sum of the sketches as rounded.

    Parameters
    ----------
    shares : Iterable[NDArray]
        What :func:`masked` made of every client's sketch, 1 to 2,047 of them.

    Raises
    ------
    DataError
        If there are none, too many, or of unlike shapes.
    """
    found = [np.asarray(share, np.uint32) for share in shares]
    shapes = sorted({share.shape for share in found})
    if not found or len(found) * _SCALE >= 1 << 31 or len(shapes) > 1:
        raise DataError(
            f"{len(found)} masked sketches of shapes {shapes}; allowed: 1 to 2047, of "
            "one shape; add larger groups in parts"
        )
    total = np.sum(found, axis=0, dtype=np.uint32)
    return np.asarray(total.view(np.int32), np.float64) / _SCALE


def with_masks(
    words: NDArray[Words], client: str, keys: Mapping[str, bytes], *, purpose: str
) -> NDArray[Words]:
    """Add a client's masks to its words, which wrap around.

    Parameters
    ----------
    words : NDArray
        Any shape, uint32 or uint64: numbers in two's complement, whose sum over the
        group the type holds.
    client, keys, purpose : str, Mapping[str, bytes], str
        See :func:`masked`.

    Returns
    -------
    NDArray
        Of the words' shape and type; uniform to whoever lacks one of the keys.

    Raises
    ------
    DataError
        If there is no other client, or a key is short.
    """
    if not keys or client in keys:
        raise DataError(
            f"keys of client {client} for {sorted(keys)}: one for every other client "
            "of the group is needed, at least one, and none for itself"
        )
    total = words.flatten()
    for other, key in keys.items():
        for start in range(0, total.size, _CHUNK):
            part = total[start : start + _CHUNK]
            stream = _stream(key, purpose, start // _CHUNK, part)
            part += stream if client < other else -stream
    return total.reshape(words.shape)


def _stream(
    key: bytes, purpose: str, chunk: int, like: NDArray[Words]
) -> NDArray[Words]:
    if len(key) < _KEY_BYTES:
        raise DataError(
            f"a key of {len(key)} bytes; allowed: {_KEY_BYTES} random bytes or more"
        )
    # The length in front keeps key and what follows apart.
    head = len(key).to_bytes(4, "little") + key + chunk.to_bytes(8, "little")
    stream = hashlib.shake_256(head + purpose.encode()).digest(like.nbytes)
    little = np.frombuffer(stream, like.dtype.newbyteorder("<"))
    return little.astype(like.dtype)
