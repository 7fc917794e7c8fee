# SPDX-License-Identifier: Apache-2.0
r"""How long a split training step takes, modelled from work and rates.

With P parameters in a block, B examples of T tokens and d hidden units, a block takes

.. math:: F = 4 P B T + 12 B T^2 d

floating point operations a step: forward, and back to its input but not to its frozen
weights (the privacy-aware SFL paper, 10.1109/JIOT.2025.3600269, counts 72 B T d^2 +
12 B T^2 d for a GPT block trained whole). A U-shaped step crosses the link four times
with B T d numbers, a vanilla one twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from atlas_flwr.budget.architecture import Architecture
from atlas_flwr.errors import BudgetError

__all__ = ["COMMON_FLOPS", "Rates", "StepTime", "step_time"]

COMMON_FLOPS = 50e9  # of a machine of speed 1: what speeds are told in, by definition


@dataclass(frozen=True)
class Rates:
    """What machines and links do.

    Attributes
    ----------
    client_flops, trunk_flops : float
        Floating point operations a second.
    link_bits : float
        Bits a second, each way.

    Raises
    ------
    BudgetError
        If one is not above 0.
    """

    client_flops: float
    trunk_flops: float
    link_bits: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise BudgetError(f"{name}={value}; it must be above 0")


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, by where they pass."""

    client: float
    link: float
    trunk: float

    @property
    def total(self) -> float:
        """One after the other, as a step's parts depend on each other."""
        return self.client + self.link + self.trunk


def step_time(
    architecture: Architecture,
    rates: Rates,
    *,
    head: int,
    tail: int | None,
    batch: int,
    length: int,
    wire_bytes: float = 4.0,
    crossing: int | None = None,
) -> StepTime:
    """Model a step's time.

    Parameters
    ----------
    architecture : Architecture
        The model.
    rates : Rates
        Of the machines and the link.
    head, tail : int
        Blocks on the client; ``tail=None`` for a vanilla split.
    batch, length : int
        Examples in a step, and tokens of each.
    wire_bytes : float
        Bytes of a number on the wire, as the codec sends it.
    crossing : int, optional
        Positions of each example that cross; all, by default.
    """
    a, crossed = architecture, length if crossing is None else crossing
    before, behind = (_block_flops(a, batch, t) for t in (length, crossed))
    ends = tail or 0
    crossings = 2 if tail is None else 4
    bits = 8 * wire_bytes * crossings * batch * crossed * a.hidden
    return StepTime(
        client=(head * before + ends * behind) / rates.client_flops,
        link=bits / rates.link_bits,
        trunk=(a.num_layers - head - ends) * behind / rates.trunk_flops,
    )


def _block_flops(a: Architecture, batch: int, length: int) -> float:
    rows = batch * length
    return 4 * a.block_params * rows + 12 * rows * length * a.hidden
