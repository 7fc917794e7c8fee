# SPDX-License-Identifier: Apache-2.0
"""Devices on a radio band, read from YAML with every mistake told at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from math import inf, log10
from pathlib import Path
from typing import Any

import yaml

from atlas_flwr.budget.band import Band
from atlas_flwr.config.parsing import parse_bytes
from atlas_flwr.data.definitions import OneOfEach
from atlas_flwr.errors import ConfigError

__all__ = ["Device", "Radio", "read_radio"]

MOST = 10_000
FEW, MANY = 1e-12, 1e12  # beyond them a unit was mistaken, and sums overflow
FAINTEST = -400.0  # dB
SIGNED, BOUNDS = ("noise", "gain"), ("energy", "leakage")


@dataclass(frozen=True)
class Device:
    """Devices of one kind.

    Attributes
    ----------
    name : str
        What to call it.
    gflops : float
        10^9 floating point operations a second.
    watts : float
        What it draws more while it computes: kappa f^3.
    power : float
        Watts that it sends with, at most.
    distance : float
        Metres to the base station, at least 1, for the path loss of 3GPP TR 36.814 in a
        city, 128.1 + 37.6 log10(km) dB; 0 where ``gain`` is given.
    gain : float
        Of its channel, in dB, below 0; 0 where ``distance`` is given.
    memory : str
        What training may take, ``'192MiB'``; empty for unlimited.
    count : int
        How many there are.
    """

    name: str
    gflops: float
    watts: float
    power: float
    distance: float = 0.0
    gain: float = 0.0
    memory: str = ""
    count: int = 1

    @property
    def decibels(self) -> float:
        """The channel's gain, in dB."""
        return self.gain or -128.1 - 37.6 * log10(self.distance / 1000)

    @property
    def received(self) -> float:
        """Watts received of a watt sent."""
        return float(10 ** (self.decibels / 10))

    @property
    def budget(self) -> int | None:
        """``memory`` in bytes."""
        return parse_bytes(self.memory) if self.memory else None


@dataclass(frozen=True)
class Radio:
    """A band, who shares it, and the bounds of a step.

    Attributes
    ----------
    bandwidth : float
        MHz.
    trunk : float
        10^9 floating point operations a second that each device has of the trunk.
    down : float
        Mbit/s to each device.
    devices : tuple[Device, ...]
        Who shares it.
    noise : float
        dBm a hertz.
    energy : float
        Joules of all devices in a step, at most; 0 for no bound.
    leakage : float
        Fisher metric of each head, at most; 0 for no bound.
    """

    bandwidth: float
    trunk: float
    down: float
    devices: tuple[Device, ...]
    noise: float = -174.0
    energy: float = 0.0
    leakage: float = 0.0

    @property
    def band(self) -> Band:
        """What ``share_band`` takes."""
        watts = 10 ** (self.noise / 10) / 1000
        return Band(self.bandwidth * 1e6, watts, self.energy or inf)


def read_radio(path: Path) -> Radio:
    """Read a file of this kind.

    Raises
    ------
    ConfigError
        With all that is wrong with it.
    """
    try:
        given = yaml.load(path.read_text(encoding="utf-8"), OneOfEach)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError([f"--radio {path}: {error}"]) from None
    problems = list(_wrong(given, Radio, "it"))
    kinds = given.get("devices") if isinstance(given, dict) else None
    if isinstance(kinds, list):
        for number, kind in enumerate(kinds, 1):
            problems += _wrong(kind, Device, f"device {number}")
    if problems:
        raise ConfigError([f"--radio {path}: {problem}" for problem in problems])
    devices = tuple(Device(**kind) for kind in given.pop("devices"))
    return Radio(devices=devices, **given)


def _wrong(given: Any, kind: type[Radio | Device], what: str) -> Iterator[str]:
    """Yield what is wrong with a mapping that is to be of this kind."""
    if not isinstance(given, dict):
        yield f"{what} must be a mapping of keys to values, not {given!r:.60}"
        return
    known = {entry.name: entry for entry in fields(kind)}
    for key in given:
        if key not in known:
            close = get_close_matches(str(key), known, 1)
            hint = f"did you mean {close[0]!r}?" if close else ", ".join(known)
            yield f"{what} has an unknown key {key!r}; {hint}"
    for name, entry in known.items():
        if name in given:
            yield from _wrong_value(name, given[name], what)
        elif entry.default is MISSING:
            yield f"{what} lacks {name!r}"
    if kind is Device and bool(given.get("gain")) == bool(given.get("distance")):
        yield f"{what} wants either 'distance' or 'gain'"


def _wrong_value(name: str, value: Any, what: str) -> Iterator[str]:
    told = f"{what} has {name}: {value!r:.60}"
    if name == "devices":
        if not isinstance(value, list) or not value:
            yield f"{told}; it must be a list of devices"
    elif name in ("name", "memory"):
        try:
            if not isinstance(value, str):
                raise ValueError("it must be text")
            if name == "memory":
                parse_bytes(value)
        except ValueError as error:
            yield f"{told}; {error}"
    elif isinstance(value, bool) or not isinstance(value, int | float):
        yield f"{told}; it must be a number{_as_yaml(value)}"
    elif name in SIGNED:
        if not FAINTEST <= value < 0:
            yield f"{told}; it is in dB, below 0 and not below {FAINTEST:g}"
    elif name == "count":
        if not (isinstance(value, int) and 1 <= value <= MOST):
            yield f"{told}; it must be whole, from 1 to {MOST}"
    elif not (1 if name == "distance" else FEW) <= value <= MANY:
        least = "at least 1" if name == "distance" else "above 0"
        none = "; leave it out for no bound" * (name in BOUNDS)
        yield f"{told}; it must be {least}, and at most {MANY:g}{none}"


def _as_yaml(value: Any) -> str:
    """Say how to write what is a number everywhere but in YAML."""
    try:
        return f": YAML reads {value} as text; write {float(value)!r}"
    except (TypeError, ValueError):
        return ""
