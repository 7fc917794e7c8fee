# SPDX-License-Identifier: Apache-2.0
"""What is known about a key of the run config, carried by a dataclass field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Knob", "knob"]


@dataclass(frozen=True)
class Knob:
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


def knob(default: Any, help: str, **limits: Any) -> Any:
    """Make a dataclass field that carries a :class:`Knob`."""
    return field(default=default, metadata={"knob": Knob(help, **limits)})
