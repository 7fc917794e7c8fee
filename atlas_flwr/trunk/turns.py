# SPDX-License-Identifier: Apache-2.0
"""Turns of batches that are in flight together: one computes while others wait.

Each batch has a thread. It computes when it has the turn, and gives it away while a
call of its is on the wire or in the trunk. After its n-th call a batch goes on only
when all before it have gone on after theirs, and have given the turn away again: so
whatever the wire does, what batches add to a parameter's gradient they add in their own
order, and the sum has the same bits as that of one batch after the other.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Ended", "Turns"]


class Ended(Exception):
    """Another batch has failed, and no turn comes any more."""


class Turns:
    """Give turns to batches, which have numbers from 0.

    Parameters
    ----------
    in_flight : int
        Batches at once: one begins when that so many before it has ended.
    """

    def __init__(self, in_flight: int) -> None:
        self.in_flight = in_flight
        # By batch: how often it has given the turn away.
        self._given: defaultdict[int, float] = defaultdict(float)
        self._is_taken = False
        self._has_failed = False
        self._change = threading.Condition()
        self._mine = threading.local()

    @contextmanager
    def batch(self, number: int) -> Iterator[None]:
        """Compute a batch in this thread.

        Raises
        ------
        Ended
            If another one has failed.
        """
        self._mine.number = number
        try:
            self._take(number)
            yield
        except BaseException:
            self._fail()
            raise
        finally:
            del self._mine.number
        self._give(number, math.inf)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Be without the turn for a while, in a thread that has a batch."""
        number: int | None = getattr(self._mine, "number", None)
        if number is None:
            yield
            return
        self._give(number, self._given[number] + 1)
        yield  # should it fail, the batch has
        self._take(number)

    def _take(self, number: int) -> None:
        with self._change:
            self._change.wait_for(lambda: self._has_failed or self._may(number))
            if self._has_failed:
                raise Ended
            self._is_taken = True

    def _may(self, number: int) -> bool:
        now, oldest = self._given[number], number - self.in_flight
        if self._is_taken or (oldest >= 0 and self._given[oldest] != math.inf):
            return False
        before = range(max(0, oldest), number)
        return all(self._given[other] > now for other in before)

    def _give(self, number: int, given: float) -> None:
        with self._change:
            self._given[number] = given
            self._is_taken = False
            self._change.notify_all()

    def _fail(self) -> None:
        with self._change:
            self._has_failed = True
            self._change.notify_all()
