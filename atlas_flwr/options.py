# SPDX-License-Identifier: Apache-2.0
"""An option of the run config, carried by a dataclass field, and what may be wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["ADAPTER_STRATEGIES", "ATLAS", "Option", "Problem", "option"]

ATLAS = ("atlas",)
# They aggregate adapters of unlike ranks, and split their clients unless told not to.
ADAPTER_STRATEGIES = (
    "atlas",
    "flexlora",
    "flora",
    "hetlora",
    "hsplitlora",
    "mira",
    "oracle",
    "splitlora",
)


@dataclass(frozen=True)
class Option:
    """What is known about a key besides its type and default.

    Attributes
    ----------
    help : str
        What it does and how to choose it.
    minimum, maximum : float, optional
        Inclusive limits.
    above : float, optional
        Exclusive lower limit.
    only : tuple[str, ...]
        The strategies that read it; empty means all. Others want it at its default.
    """

    help: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    only: tuple[str, ...] = ()


def option(default: Any, help: str, **limits: Any) -> Any:
    """Make a dataclass field that carries an :class:`Option`."""
    return field(default=default, metadata={"option": Option(help, **limits)})


@dataclass(frozen=True)
class Problem:
    """A sentence for the user, and the keys that it is about."""

    keys: tuple[str, ...]
    sentence: str
