# SPDX-License-Identifier: Apache-2.0
"""Seeds derived from a run's seed and names, the same in every process."""

from __future__ import annotations

import hashlib

__all__ = ["derive_seed"]


def derive_seed(seed: int, *names: object) -> int:
    """Hash a seed and any names into an independent 63-bit seed.

    Parameters
    ----------
    seed : int
        The run's seed.
    *names : object
        What the randomness is for, e.g. ``"train"``, a round, a client id; their
        ``str`` is hashed.

    Returns
    -------
    int
        In [0, 2**63): valid for numpy, torch and :mod:`random`.
    """
    text = "\x1f".join(str(part) for part in (seed, *names))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
