# SPDX-License-Identifier: Apache-2.0
"""Waiting for a busy trunk."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from atlas_flwr.errors import TrunkBusy

__all__ = ["retry_while_busy"]

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0
T = TypeVar("T")


def retry_while_busy(
    ask: Callable[[], T],
    timeout: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Ask again while the trunk is busy, with pauses that double.

    Parameters
    ----------
    ask : Callable[[], T]
        Safe to repeat: the trunk does a step once.
    timeout : float
        Seconds in all.
    clock, sleep : Callable
        For tests.

    Raises
    ------
    TrunkBusy
        If it is still busy when the time is over.
    """
    deadline, pause = clock() + timeout, FIRST_PAUSE
    while True:
        try:
            return ask()
        except TrunkBusy:
            if clock() + pause > deadline:
                raise
        sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
