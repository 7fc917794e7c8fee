# SPDX-License-Identifier: Apache-2.0
"""Accounts of the bytes that crossed the cut."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from atlas_flwr.types import Role

__all__ = ["ByteMeter"]


@dataclass
class ByteMeter:
    """Bytes by direction and role, as a client counts them.

    Attributes
    ----------
    up, down : Counter[Role]
        Sent to the trunk, and received from it.
    """

    up: Counter[Role] = field(default_factory=Counter)
    down: Counter[Role] = field(default_factory=Counter)

    @property
    def total_up(self) -> int:
        """All bytes sent."""
        return self.up.total()

    @property
    def total_down(self) -> int:
        """All bytes received."""
        return self.down.total()
