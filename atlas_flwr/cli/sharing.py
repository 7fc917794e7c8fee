# SPDX-License-Identifier: Apache-2.0
"""How devices would share a radio band, as ``atlas-flwr plan --radio`` shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from atlas_flwr.errors import BudgetError, ConfigError

if TYPE_CHECKING:
    from atlas_flwr.budget.band import CutCost, Sender, SharedStep
    from atlas_flwr.cli.radio import Device, Radio
    from atlas_flwr.config import RunConfig
    from atlas_flwr.server_apps.assignment import DeviceRule
    from atlas_flwr.split import SplitPlan
    from atlas_flwr.train.weights import ModelFiles

__all__ = ["check_sharing", "sharing_shown"]

GIGA, MEGA = 1e9, 1e6


def check_sharing(config: RunConfig, radio: Radio) -> None:
    """Refuse a run in which nothing crosses, or whose leakage has no measure.

    Raises
    ------
    ConfigError
        If it is such a run.
    """
    from atlas_flwr.cli.leakage import check_leakage

    if why := config.unsplit:
        raise ConfigError([f"--radio with {why}: nothing crosses; leave it out"])
    if radio.leakage:
        check_leakage(config)


def sharing_shown(
    config: RunConfig, files: ModelFiles, rule: DeviceRule, radio: Radio
) -> str:
    """Set in text which cut, band and power each device would have, and what of it.

    Beside it stands what the devices would take with the fewest blocks that they may
    have, equal parts of the band, and all their power.

    Parameters
    ----------
    config : RunConfig
        The run's.
    files : ModelFiles
        Of its model.
    rule : DeviceRule
        Which cuts there are, and what they take of memory and time.
    radio : Radio
        The devices, their band, and the bounds.

    Raises
    ------
    BudgetError
        If a device may have no cut, or the bounds leave no step.
    """
    from atlas_flwr.budget.band import Sender, share_band
    from atlas_flwr.report.table import as_text

    leaks = _leakage(config, files, rule) if radio.leakage else {}
    kinds = [(kind, _cuts(rule, radio, kind, leaks)) for kind in radio.devices]
    everyone = [pair for pair in kinds for _ in range(pair[0].count)]
    senders = [
        Sender(list(cuts.values()), kind.received, kind.power)
        for kind, cuts in everyone
    ]
    found = share_band(senders, radio.band)
    alike = share_evenly(senders, radio)
    rows = Counter(_row(*pair, found, i) for i, pair in enumerate(everyone))
    shown = [(f"{name} x {n}" if n > 1 else name, *r) for (name, *r), n in rows.items()]
    bounds = f", {radio.energy:g} J at most" * bool(radio.energy)
    bounds += f", leakage {radio.leakage:g} at most" * bool(radio.leakage)
    return "\n".join(
        [
            as_text(
                f"a step over {radio.bandwidth:g} MHz{bounds}",
                ("device", "cut", "MHz", "W", "sends, s", "else, s", "J"),
                shown,
                total=False,
            ),
            f"a step takes {found.seconds:.4g} s and {sum(found.joules):.4g} J; no "
            f"choice of cuts, bands and powers takes less than {found.least:.4g} s",
            f"with the first cut, equal bands and full power: {alike[0]:.4g} s and "
            f"{alike[1]:.4g} J",
            f"to run it, beside the keys given here: {_as_keys(everyone, found)}",
            *_left_out(radio.devices),
        ]
    )


def share_evenly(senders: Sequence[Sender], radio: Radio) -> tuple[float, float]:
    """Return a step's seconds and joules at first cuts, equal bands and full power."""
    from atlas_flwr.budget.band import rate

    hertz, noise = radio.band.hertz / len(senders), radio.band.noise
    times, spent = [], []
    for sender in senders:
        first = sender.cuts[0]
        sending = first.bits / rate(sender.gain, sender.watts, hertz, noise)
        times.append(first.seconds + sending)
        spent.append(first.joules + sender.watts * sending)
    return max(times), sum(spent)


def _cuts(
    rule: DeviceRule, radio: Radio, kind: Device, leaks: Mapping[SplitPlan, float]
) -> dict[SplitPlan, CutCost]:
    """Return the cuts that a device's memory and the bound on leakage leave it."""
    from atlas_flwr.budget import Rates
    from atlas_flwr.budget.band import CutCost

    allowed = [p for p in rule.plans if not leaks or leaks[p] <= radio.leakage]
    if not allowed:
        told = ", ".join(f"{p}: {leak:.0f}" for p, leak in leaks.items())
        raise BudgetError(
            f"leakage {radio.leakage:g}: each head up to max-head has more ({told}); "
            "allow more, or raise max-head"
        )
    link = radio.down * MEGA
    rates = Rates(kind.gflops * GIGA, radio.trunk * GIGA, link)
    found = {}
    for plan in allowed:
        try:
            rule.cut_at(str(plan)).planned(kind.budget)
        except BudgetError as error:
            too_small = error
            continue
        took = rule.seconds(rates, plan.head, plan.tail)
        # Half of what crosses goes up, half comes down.
        other = took.client + took.trunk + took.link / 2
        found[plan] = CutCost(other, kind.watts * took.client, took.link * link / 2)
    if not found:
        raise BudgetError(f"{kind.name}: {too_small}")
    return found


def _row(
    kind: Device, cuts: Mapping[SplitPlan, CutCost], step: SharedStep, device: int
) -> tuple[str, ...]:
    plan, cut = list(cuts.items())[step.cuts[device]]
    return (
        kind.name,
        str(plan),
        f"{step.hertz[device] / MEGA:.3f}",
        f"{step.watts[device]:.3f}",
        f"{step.seconds - cut.seconds:.3f}",
        f"{cut.seconds:.3f}",
        f"{step.joules[device]:.3f}",
    )


def _as_keys(
    everyone: Sequence[tuple[Device, Mapping[SplitPlan, CutCost]]], step: SharedStep
) -> str:
    """Write the devices and their cuts as keys of a run; all have memory, or none."""
    cuts = [str(list(own)[step.cuts[i]]) for i, (_, own) in enumerate(everyone)]
    shared = cuts[:1] if len(set(cuts)) == 1 else cuts
    keys = [f"cut='{','.join(shared)}'"]
    if all(kind.memory for kind, _ in everyone):
        keys.insert(0, f"devices='{','.join(kind.memory for kind, _ in everyone)}'")
    return f"-n {len(everyone)} -c \"{' '.join(keys)} device-order='cycle'\""


def _left_out(kinds: Sequence[Device]) -> list[str]:
    """Say whose memory those keys leave out, if anybody's."""
    having = [f"{kind.name}: {kind.memory}" for kind in kinds if kind.memory]
    if len(having) in (0, len(kinds)):
        return []
    return [
        "these keys leave out devices, which is of all clients or of none, and with it "
        f"the memory of some ({', '.join(having)}): a SuperNode has its own as memory "
        "in its node config; for a simulation, give each device of the file a memory"
    ]


def _leakage(
    config: RunConfig, files: ModelFiles, rule: DeviceRule
) -> dict[SplitPlan, float]:
    from atlas_flwr.cli.leakage import fisher_of

    return {plan: fisher_of(config, files, plan) for plan in rule.plans}
