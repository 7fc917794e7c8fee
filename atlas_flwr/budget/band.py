# SPDX-License-Identifier: Apache-2.0
r"""A radio band shared by devices that choose cuts: the fastest step for its energy.

A device with gain h that sends with power p over B hertz has the rate (privacy-aware
SFL, 10.1109/JIOT.2025.3600269, eq. 2-24)

.. math:: R = B \log_2 (1 + p h / (n_0 B)).

With a cut l it computes, waits for the trunk and receives for s(l) seconds, spends
e(l) joules on that, and sends b bits in what is left of the step. For a step of T
seconds it has :math:`\tau = T - s(l)` to send, and with :math:`x = b \ln 2 / (\tau B)`
spends

.. math:: E = e(l) + \tau p, \qquad p = n_0 B (e^x - 1) / h \le p_{max},

which falls as B grows. The fastest step has :math:`\sum E \le E_{max}` and
:math:`\sum B \le B_{max}` over cuts, powers and bandwidths together. T is found by
bisection; for each T a price on bandwidth lets every device choose by itself, in closed
form (Lambert's W). Where cuts are fixed that is exact, as the problem is convex. Over
cuts it gives a bound that no choice can beat; branch and bound searches what is left
between the two. The paper descends by blocks, first cuts, then powers, then bandwidths,
which ends where no block alone gains, and tells no bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import lambertw

from atlas_flwr.errors import BudgetError

__all__ = ["Band", "CutCost", "Sender", "SharedStep", "rate", "share_band"]

Floats = NDArray[np.float64]
LN2 = math.log(2)
EXACT, NEAR, SLOWEST, PRICES, MOST = 1e-9, 1e-4, 1e9, 50, 1000


@dataclass(frozen=True)
class CutCost:
    """What a cut asks of a device in each step.

    Attributes
    ----------
    seconds : float
        Of all but sending: s(l).
    joules : float
        Of all but sending: e(l).
    bits : float
        To send: b.
    """

    seconds: float
    joules: float
    bits: float


@dataclass(frozen=True)
class Sender:
    """A device.

    Attributes
    ----------
    cuts : Sequence[CutCost]
        Those that it may have; at least one.
    gain : float
        h, watts received of a watt sent.
    watts : float
        The most that it sends with.
    """

    cuts: Sequence[CutCost]
    gain: float
    watts: float


@dataclass(frozen=True)
class Band:
    """What the devices share.

    Attributes
    ----------
    hertz : float
        B_max.
    noise : float
        n_0, watts a hertz.
    joules : float
        E_max, of all devices in a step.
    """

    hertz: float
    noise: float
    joules: float = math.inf


@dataclass(frozen=True)
class SharedStep:
    """The step that was found.

    Attributes
    ----------
    seconds : float
        T: what the slowest device takes, and so all.
    least : float
        Seconds below which no choice of cuts, powers and bandwidths comes. It is within
        1e-4 of ``seconds`` unless the search was cut short, which many devices of few
        kinds may need.
    cuts : Sequence[int]
        Which of its cuts each device has.
    hertz, watts, joules : Sequence[float]
        Of each device: its part of the band, what it sends with, what it spends.
    """

    seconds: float
    least: float
    cuts: Sequence[int]
    hertz: Sequence[float]
    watts: Sequence[float]
    joules: Sequence[float]


def rate(gain: float, watts: float, hertz: float, noise: float) -> float:
    """Return R, bits a second, of a device that sends with so much over so much."""
    return hertz * math.log2(1 + watts * gain / (noise * hertz))


def share_band(senders: Sequence[Sender], band: Band) -> SharedStep:
    """Choose cuts, powers and bandwidths for the fastest step.

    Raises
    ------
    BudgetError
        If there is no device, one has no cut, a number is out of its range, or no
        choice spends as little as ``band.joules``: with the least that is needed.
    """
    table = _Table.of(senders, band)
    least, shares = table.fastest(band)
    cuts = shares.cuts
    if table.only(cuts).needed.sum() >= band.joules:
        cuts = table.needed.argmin(1)
    seconds, shares = table.only(cuts).fastest(band)
    unsearched, looked = [table], 0
    while unsearched and looked < MOST and seconds > least * (1 + NEAR):
        part, looked = unsearched.pop(), looked + 1
        goal = seconds * (1 - NEAR)
        if (found := part.within(goal, band)) is None:
            continue
        own = table.only(found.cuts)
        if own.within(goal, band):
            cuts = found.cuts
            seconds, shares = own.fastest(band)
            unsearched.append(part)
        else:
            unsearched += part.halves(found)
    if not unsearched:
        least = max(least, seconds * (1 - NEAR))
    least = min(least, seconds)  # both are rounded
    spent = (a.tolist() for a in (shares.hertz, shares.watts, shares.joules))
    return SharedStep(seconds, least, cuts.tolist(), *spent)


class _Shares(NamedTuple):
    """What N devices have, each array (N,), and the least energy for any cuts.

    ``cheaper`` are the cuts that they would have were the band the least bit larger.
    """

    cuts: NDArray[np.intp]
    cheaper: NDArray[np.intp]
    hertz: Floats
    watts: Floats
    joules: Floats
    least: float


@dataclass(frozen=True)
class _Table:
    """N devices of up to L cuts: arrays (N, L), or (N, 1) of a device."""

    seconds: Floats  # inf where there is no cut
    joules: Floats
    bits: Floats
    noise: Floats  # n_0 / h, (N, 1)
    most: Floats  # p_max, (N, 1)

    @classmethod
    def of(cls, senders: Sequence[Sender], band: Band) -> _Table:
        if not senders or not all(sender.cuts for sender in senders):
            raise BudgetError("a band is for devices of at least one cut each")
        width = max(len(sender.cuts) for sender in senders)
        absent = CutCost(math.inf, 0.0, 1.0)
        rows = [[*s.cuts, *[absent] * (width - len(s.cuts))] for s in senders]
        table = np.array([[(c.seconds, c.joules, c.bits) for c in r] for r in rows])
        seconds, joules, bits = np.moveaxis(table, 2, 0)
        gains, most = np.array([(s.gain, s.watts) for s in senders]).T[:, :, None]
        shared = np.array([band.hertz, band.noise, band.joules])
        if not all((a > 0).all() for a in (bits, gains, most, shared)):
            raise BudgetError(
                f"{band}, {senders}: bits, gains, watts and all of the band must be "
                "above 0"
            )
        if not ((seconds >= 0).all() and (joules >= 0).all()):
            raise BudgetError(f"{senders}: seconds and joules must be at least 0")
        return cls(seconds, joules, bits, band.noise / gains, most)

    @property
    def needed(self) -> Floats:
        """Joules that are never enough: those of a step that sends for ever."""
        given = np.where(np.isfinite(self.seconds), self.joules, np.inf)
        return given + self.bits * self.noise * LN2

    def only(self, cuts: NDArray[np.intp]) -> _Table:
        """Return the table in which these cuts are the devices' only ones."""
        at = cuts[:, None]
        seconds, joules, bits = (
            np.take_along_axis(a, at, 1) for a in (self.seconds, self.joules, self.bits)
        )
        return _Table(seconds, joules, bits, self.noise, self.most)

    def fastest(self, band: Band) -> tuple[float, _Shares]:
        """Return the least T at which prices do not rule a step out, and its shares."""
        needed = self.needed.min(1).sum()
        if band.joules <= needed:
            raise BudgetError(
                f"{band.joules:.4g} J a step: sending as slowly as can be takes "
                f"{needed:.4g} J; allow more than that, or let devices have cuts "
                "that compute less"
            )
        fast = float(self.seconds.min(1).max())
        slow = 2 * fast + 1e-3
        while (shares := self.within(slow, band)) is None:
            slow *= 2
            if slow > SLOWEST:
                raise BudgetError(
                    f"no step of less than {SLOWEST:.0e} s: {band.hertz:g} Hz, "
                    f"{band.joules:.4g} J or a device's power at its gain is too "
                    f"little for {len(self.seconds)} devices; allow more, or mend a "
                    "gain (or distance)"
                )
        while slow - fast > EXACT * slow:
            middle = (fast + slow) / 2
            if found := self.within(middle, band):
                slow, shares = middle, found
            else:
                fast = middle
        return slow, shares

    def within(self, seconds: float, band: Band) -> _Shares | None:
        """Share the band at the price at which it is used up.

        None if no step can be so fast. Where devices have one cut each it then can be.
        """
        scale = float((seconds * self.noise).max())
        low, high = math.log(scale * 1e-20), math.log(scale * 1e40)
        dear = self._bought(seconds, math.exp(high), band.hertz)
        if not dear.hertz.sum() <= band.hertz:
            return None
        cheaper = dear.cuts
        for _ in range(PRICES):
            middle = (low + high) / 2
            tried = self._bought(seconds, math.exp(middle), band.hertz)
            if tried.least > band.joules:
                return None
            if tried.hertz.sum() <= band.hertz:
                high, dear = middle, tried
            else:
                low, cheaper = middle, tried.cuts
        return dear._replace(cheaper=cheaper) if dear.least <= band.joules else None

    def halves(self, shares: _Shares) -> list[_Table]:
        """Split what is left of the cuts in two, where the price is undecided."""
        several = np.isfinite(self.seconds).sum(1) > 1
        undecided = several & (shares.cuts != shares.cheaper)
        if not several.any():
            return []
        device = int((undecided if undecided.any() else several).argmax())
        without, alone = self.seconds.copy(), np.full_like(self.seconds[device], np.inf)
        alone[shares.cuts[device]] = without[device, shares.cuts[device]]
        without[device, shares.cuts[device]] = np.inf
        within = self.seconds.copy()
        within[device] = alone
        return [replace(self, seconds=without), replace(self, seconds=within)]

    def _bought(self, seconds: float, price: float, hertz: float) -> _Shares:
        """Let each device choose what costs it least at a price of a hertz."""
        left = np.maximum(seconds - self.seconds, 0.0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            nats = self.bits * LN2 / left
            k = self.most / (self.noise * nats)
            most = -lambertw(-np.exp(-1 / k) / k, -1).real - 1 / k
            best = 1 + lambertw((price / (left * self.noise) - 1) / math.e).real
            x = np.minimum(best, most)
            band = nats / x
            power = self.noise * band * np.expm1(x)
            spent = self.joules + left * power
            cost = np.where((k > 1) & (x > 0), spent + price * band, np.inf)
        cuts = cost.argmin(1)
        own = np.arange(len(cuts)), cuts
        band = np.where(np.isfinite(cost), band, np.inf)
        least = float(cost[own].sum() - price * hertz)
        return _Shares(cuts, cuts, band[own], power[own], spent[own], least)
