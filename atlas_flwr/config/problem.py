# SPDX-License-Identifier: Apache-2.0
"""What a rule finds wrong with a configuration."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """A sentence for the user, and the keys that it is about."""

    keys: tuple[str, ...]
    sentence: str
