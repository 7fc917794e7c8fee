# SPDX-License-Identifier: Apache-2.0
"""Accounts of the bytes that crossed the cut."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from atlas_flwr.types import Role
from atlas_flwr.wire.frames import unpack

__all__ = ["ByteMeter"]


@dataclass
class ByteMeter:
    """Bytes by direction and role, counted where frames leave a client and arrive.

    A frame's header counts as its first tensor's; one without tensors as activation.

    Attributes
    ----------
    up, down : Counter[Role]
        Sent to the trunk, and received from it.
    """

    up: Counter[Role] = field(default_factory=Counter)
    down: Counter[Role] = field(default_factory=Counter)

    def sent(self, frame: bytes) -> None:
        """Count a frame that goes to the trunk; one sent twice counts twice."""
        _count(frame, self.up)

    def received(self, frame: bytes) -> None:
        """Count a frame that came from the trunk."""
        _count(frame, self.down)

    @property
    def total_up(self) -> int:
        """All bytes sent."""
        return self.up.total()

    @property
    def total_down(self) -> int:
        """All bytes received."""
        return self.down.total()


def _count(frame: bytes, into: Counter[Role]) -> None:
    parts = [(entry.role, len(payload)) for entry, payload in unpack(frame)]
    for role, size in parts:
        into[role] += size
    first = parts[0][0] if parts else Role.ACTIVATION
    into[first] += len(frame) - sum(size for _, size in parts)
