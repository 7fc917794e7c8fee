# SPDX-License-Identifier: Apache-2.0
"""What ``codec='auto'`` takes: a codec for a link, by how fast that is.

The time that a number takes to cross is that of its bytes on the link and that of its
encoding and decoding. The first is measured where bytes leave the machine, as a session
begins, the second on this machine, once in a process; the trunk is taken to be as fast.
Of ``raw``, ``int8`` and ``int4`` a less exact one is taken where it is faster by far.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from atlas_flwr.trunk.transports.framed import FramedTrunk
from atlas_flwr.types import Role
from atlas_flwr.wire.codecs import CODECS, Codec, codec_named

__all__ = ["CANDIDATES", "CodecCost", "chosen_codec", "codec_for", "link_speed"]

CANDIDATES = ("raw", "int8", "int4")  # each in fewer bytes and less exact
GAIN = 0.7  # of the time before, that a less exact codec may take at most
UNNOTICED = 2e-8  # seconds a number, below which nothing is to be saved

FIRST, LARGEST = 1 << 15, 1 << 19  # bytes sent to measure
ENOUGH = 0.02  # seconds that are told from a clock's and a scheduler's errors
TRIES, PATIENCE = 3, 0.5  # measurements of a size, and seconds after which 2 will do


@dataclass(frozen=True)
class CodecCost:
    """What a codec does to a number.

    Attributes
    ----------
    size : float
        Bytes it has on the wire.
    seconds : float
        To encode and decode it.
    """

    size: float
    seconds: float


def codec_for(
    trunk: FramedTrunk, clock: Callable[[], float] = time.perf_counter
) -> Codec:
    """Choose a codec for a session's link.

    Where nothing leaves the machine that is ``raw``, and nothing is measured.
    """
    if not trunk.has_wire:
        return codec_named(CANDIDATES[0])
    return codec_named(chosen_codec(link_speed(trunk, clock), codec_costs()))


def chosen_codec(speed: float, costs: Mapping[str, CodecCost]) -> str:
    """Return the codec for a link.

    Parameters
    ----------
    speed : float
        Bytes a second.
    costs : Mapping[str, CodecCost]
        Of the codecs to choose from, the most exact first.
    """
    (name, cost), *others = costs.items()
    best = cost.size / speed + cost.seconds
    for other, cost in others:
        took = cost.size / speed + cost.seconds
        if best > UNNOTICED and took < GAIN * best:
            name, best = other, took
    return name


def link_speed(
    trunk: FramedTrunk, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Measure how many bytes a second a link carries, the mean of both directions.

    What an empty message takes is not counted. The shortest of several tries counts, as
    a busy machine only ever adds to them.
    """
    trunk.echo(1)  # a connection's first message takes longer
    empty = min(_seconds(trunk, 1, clock) for _ in range(TRIES))
    size = FIRST
    while True:
        found = [_seconds(trunk, size, clock) for _ in range(2)]
        while len(found) < TRIES and sum(found) < PATIENCE:
            found.append(_seconds(trunk, size, clock))
        taken = min(found) - empty
        if taken >= ENOUGH or size >= LARGEST:
            return 2 * size / max(taken, 1e-9)
        size *= 4


def _seconds(trunk: FramedTrunk, size: int, clock: Callable[[], float]) -> float:
    begun = clock()
    trunk.echo(size)
    return clock() - begun


@cache
def codec_costs() -> Mapping[str, CodecCost]:
    """Measure the codecs that are chosen from on this machine."""
    rows = np.random.default_rng(0).normal(size=(64, 1024)).astype(np.float32)
    return {name: _cost(CODECS[name], rows) for name in CANDIDATES}


def _cost(
    codec: Codec, rows: np.ndarray[tuple[int, int], np.dtype[np.float32]]
) -> CodecCost:
    times = []
    for _ in range(TRIES + 1):
        begun = time.perf_counter()
        frame = codec.encode(rows, Role.ACTIVATION)
        codec.decode(frame)
        times.append(time.perf_counter() - begun)
    return CodecCost(len(frame) / rows.size, min(times) / rows.size)
