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
Diffie-Hellman exchange through the server will do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.errors import DataError

__all__ = ["masked", "unmasked_sum"]

_SCALE = 1 << 20
_KEY_BYTES = 16


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
    if not keys or client in keys:
        raise DataError(
            f"keys of client {client} for {sorted(keys)}: one for every other client "
            "of the group is needed, at least one, and none for itself"
        )
    total = np.rint(values * _SCALE).astype(np.int64).astype(np.uint32)
    for other, key in keys.items():
        stream = _stream(key, purpose, values.size).reshape(values.shape)
        total = total + stream if client < other else total - stream
    return total


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


def _stream(key: bytes, purpose: str, count: int) -> NDArray[np.uint32]:
    if len(key) < _KEY_BYTES:
        raise DataError(
            f"a key of {len(key)} bytes; allowed: {_KEY_BYTES} random bytes or more"
        )
    # The length in front keeps key and purpose apart.
    head = len(key).to_bytes(4, "little")
    words = hashlib.shake_256(head + key + purpose.encode()).digest(4 * count)
    return np.frombuffer(words, "<u4").astype(np.uint32)
