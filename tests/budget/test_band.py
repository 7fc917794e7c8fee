from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from atlas_flwr.budget import Band, CutCost, Sender, share_band
from atlas_flwr.budget.band import rate
from atlas_flwr.errors import BudgetError

NOISE = 4e-21


def drawn(seed: int, devices: int = 3, cuts: int = 3) -> list[Sender]:
    """Make devices of which deeper cuts take longer, or spend more, or neither."""
    chance = np.random.default_rng(seed)
    found = []
    for _ in range(devices):
        seconds, joules = chance.uniform(0.05, 0.6, cuts), chance.uniform(0.1, 2, cuts)
        bits = chance.uniform(1e6, 8e6, cuts)
        table = np.stack([seconds, joules, bits], axis=1).tolist()
        costs = [CutCost(*row) for row in table]
        gain, watts = 10 ** chance.uniform(-11, -9), chance.uniform(0.1, 0.3)
        found.append(Sender(costs, float(gain), float(watts)))
    return found


def spent(cut: CutCost, sender: Sender, seconds: float, hertz: float) -> float:
    """Joules of a device that has this cut and part of a band, from Shannon's rate."""
    left = seconds - cut.seconds
    noise = NOISE * hertz / sender.gain
    return cut.joules + left * noise * (2 ** (cut.bits / (left * hertz)) - 1)


def tried_all(senders: list[Sender], band: Band) -> float:
    """Solve for each choice of cuts with a general solver; return the fastest step."""
    choices = itertools.product(*(sender.cuts for sender in senders))
    return min(solved(cuts, senders, band) for cuts in choices)


def solved(cuts: tuple[CutCost, ...], senders: list[Sender], band: Band) -> float:
    least = max(cut.seconds for cut in cuts)
    both = list(zip(cuts, senders, strict=True))

    def joules(v: np.ndarray) -> np.ndarray:
        return np.array(
            [spent(*pair, v[0], h * 1e6) for pair, h in zip(both, v[1:], strict=True)]
        )

    def power_left(v: np.ndarray) -> np.ndarray:
        sent = joules(v) - [cut.joules for cut in cuts]
        return [s.watts for s in senders] - sent / (v[0] - [c.seconds for c in cuts])

    limits = [
        {"type": "ineq", "fun": lambda v: band.hertz / 1e6 - sum(v[1:])},
        {"type": "ineq", "fun": power_left},
    ]
    if math.isfinite(band.joules):
        limits.append({"type": "ineq", "fun": lambda v: band.joules - sum(joules(v))})
    share = band.hertz / 1e6 / len(senders)
    bounds = [(least + 1e-3, None), *[(1e-2, None)] * len(senders)]
    found = [
        minimize(
            lambda v: v[0],
            [start, *[share] * len(senders)],
            constraints=limits,
            bounds=bounds,
            method="SLSQP",
            options={"ftol": 1e-10, "maxiter": 300},
        )
        for start in (least * 1.5 + 0.1, least * 3 + 1)
    ]
    return min((float(f.fun) for f in found if f.success), default=math.inf)


def between(senders: list[Sender], share: float) -> float:
    """A bound between the least energy there is and what the fastest step takes."""
    full = sum(share_band(senders, Band(2e6, NOISE)).joules)
    least = sum(
        min(c.joules + c.bits * NOISE / s.gain * math.log(2) for c in s.cuts)
        for s in senders
    )
    return least + share * (full - least)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_no_choice_of_cuts_powers_and_bands_is_faster(seed):
    senders = drawn(seed, devices=2)
    for joules in (math.inf, between(senders, 0.3)):
        band = Band(2e6, NOISE, joules)
        found = share_band(senders, band)
        assert found.seconds == pytest.approx(tried_all(senders, band), rel=2e-4)
        assert found.least == pytest.approx(found.seconds, rel=2e-4)


def test_one_device_without_a_bound_on_energy_takes_what_shannon_says():
    cut = CutCost(0.2, 1.0, 4e6)
    sender, band = Sender([cut], 1e-10, 0.2), Band(1e6, NOISE)
    found = share_band([sender], band)
    expected = 0.2 + 4e6 / rate(1e-10, 0.2, 1e6, NOISE)
    assert found.seconds == pytest.approx(expected)
    assert found.joules[0] == pytest.approx(1.0 + 0.2 * (expected - 0.2))
    assert rate(1e-10, 0.2, 1e6, NOISE) == pytest.approx(
        1e6 * math.log2(1 + 0.2 * 1e-10 / (NOISE * 1e6))
    )


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(0.0, 1.0))
def test_what_is_found_keeps_every_bound(seed, devices, share):
    senders = drawn(seed, devices)
    band = Band(2e6, NOISE, between(senders, 0.05 + share))
    found = share_band(senders, band)
    assert sum(found.hertz) <= band.hertz * (1 + 1e-9)
    assert sum(found.joules) <= band.joules * (1 + 1e-9)
    assert found.least <= found.seconds
    for device, sender in enumerate(senders):
        cut, hertz = sender.cuts[found.cuts[device]], found.hertz[device]
        watts = found.watts[device]
        assert watts <= sender.watts * (1 + 1e-9)
        sending = cut.bits / rate(sender.gain, watts, hertz, NOISE)
        assert cut.seconds + sending <= found.seconds * (1 + 1e-6)
        assert found.joules[device] == pytest.approx(cut.joules + watts * sending)


def test_a_tighter_bound_on_energy_is_never_faster():
    senders = drawn(3, devices=4)
    times = [
        share_band(senders, Band(2e6, NOISE, between(senders, share))).seconds
        for share in (1.0, 0.6, 0.2)
    ]
    assert times == sorted(times)
    assert times[0] < times[-1]


def test_a_hundred_devices_come_near_to_the_bound():
    found = share_band(drawn(5, devices=100, cuts=8), Band(4e7, NOISE, 60.0))
    assert found.least <= found.seconds <= found.least * 1.001


def test_too_little_energy_is_refused_with_what_is_needed():
    sender = Sender([CutCost(0.2, 1.0, 4e6), CutCost(0.1, 3.0, 4e6)], 1e-10, 0.2)
    needed = 1.0 + 4e6 * NOISE / 1e-10 * math.log(2)
    with pytest.raises(BudgetError, match=f"takes {needed:.4g} J"):
        share_band([sender], Band(1e6, NOISE, needed))
    assert share_band([sender], Band(1e6, NOISE, 1.01 * needed)).cuts == [0]


@pytest.mark.parametrize(
    ("senders", "band"),
    [
        ([], Band(1e6, NOISE)),
        ([Sender([], 1e-10, 0.2)], Band(1e6, NOISE)),
        ([Sender([CutCost(0.1, 1.0, 0.0)], 1e-10, 0.2)], Band(1e6, NOISE)),
        ([Sender([CutCost(-0.1, 1.0, 1e6)], 1e-10, 0.2)], Band(1e6, NOISE)),
        ([Sender([CutCost(0.1, 1.0, 1e6)], 0.0, 0.2)], Band(1e6, NOISE)),
        ([Sender([CutCost(0.1, 1.0, 1e6)], 1e-10, 0.2)], Band(math.nan, NOISE)),
    ],
)
def test_impossible_numbers_are_refused(senders, band):
    with pytest.raises(BudgetError):
        share_band(senders, band)
