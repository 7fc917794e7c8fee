# SPDX-License-Identifier: Apache-2.0
"""A problem of a configuration, and the rule that finds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from atlas_flwr.config.schema import RunConfig

__all__ = ["Problem", "Rule"]


@dataclass(frozen=True)
class Problem:
    """A sentence for the user, and the keys that it is about."""

    keys: tuple[str, ...]
    sentence: str


Rule = Callable[[RunConfig], Iterator[Problem]]
