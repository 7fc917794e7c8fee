# SPDX-License-Identifier: Apache-2.0
"""What a trunk's owner asks of it, and is told: what both ends agree on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from atlas_flwr.errors import WireError

__all__ = ["OwnerVerb", "Served", "read", "said", "told"]


class OwnerVerb(StrEnum):
    """What an owner asks."""

    HELLO = "hello"
    OPEN = "open"
    SHARE = "share"
    UNSHARE = "unshare"
    ADAPTERS = "adapters"
    IMPORTANCE = "importance"
    CLOSE = "close"
    STATS = "stats"
    LEAVE = "leave"


@dataclass(frozen=True)
class Served:
    """What a trunk says of itself to who owns it.

    Attributes
    ----------
    start : str
        Differs each time that it is started: its sessions ended with the one before.
    model : str
        What it was loaded from.
    cut : str
        The cut whose trunk it is; it serves every deeper one.
    blocks, width : int
        Of the whole model, and of its hidden states.
    classes : int
        Outputs of a classifier; 0 for a causal language model.
    dtype : str
        Of the base.
    digest : str
        Of some of its weights.
    """

    start: str
    model: str
    cut: str
    blocks: int
    width: int
    classes: int
    dtype: str
    digest: str


def told(about: Mapping[str, Any]) -> bytes:
    """Write an object."""
    return json.dumps(dict(about)).encode()


def read(data: bytes) -> dict[str, Any]:
    """Read what :func:`told` wrote.

    Raises
    ------
    WireError
        If it is no object in JSON.
    """
    try:
        found = json.loads(data)
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise WireError("an owner's request or answer that is not JSON") from None
    if not isinstance(found, dict):
        raise WireError("an owner's request or answer that is no object")
    return found


def said(data: bytes, key: str) -> str:
    """Read one entry of an object, as text."""
    return str(read(data).get(key))
