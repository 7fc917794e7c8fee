# SPDX-License-Identifier: Apache-2.0
"""A trunk's account of itself."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

__all__ = ["TrunkStats", "process_peak_bytes"]


@dataclass(frozen=True)
class TrunkStats:
    """A trunk's account of itself.

    Attributes
    ----------
    sessions : int
        Open now.
    passes : int
        Kept for a backward now.
    steps : int
        Training steps done.
    busy_seconds : float
        Spent in passes, summed over threads.
    peak_bytes : int
        Largest resident memory of the process so far.
    kept_bytes : int
        Activations kept for a backward now, the base's and the adapters' weights aside.
    bytes_in, bytes_out : int
        Of all frames received and answered; 0 where calls come without frames.
    device_peak_bytes : int
        Largest memory allocated on the trunk's GPU; 0 on a CPU.
    base_passes : int
        Passes over the base, forward and backward; several sessions' calls may be one.
    joined_calls : int
        Calls that shared a pass.
    unjoined_calls : int
        Calls that ran alone while others waited, because they cannot share one.
    caches, cache_bytes : int
        Generations whose keys and values are kept now, and their bytes.
    evicted_caches : int
        Generations that were forgotten for want of room.
    waiting : int
        Calls that wait for their turn now.
    evicted_sessions : int
        Sessions that were forgotten, being idle.
    sessions_in_host : int
        Idle sessions whose state has left the trunk's GPU for the host's memory.
    """

    sessions: int
    passes: int
    steps: int
    busy_seconds: float
    peak_bytes: int
    kept_bytes: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    device_peak_bytes: int = 0
    base_passes: int = 0
    joined_calls: int = 0
    unjoined_calls: int = 0
    caches: int = 0
    cache_bytes: int = 0
    evicted_caches: int = 0
    waiting: int = 0
    evicted_sessions: int = 0
    sessions_in_host: int = 0


def process_peak_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
