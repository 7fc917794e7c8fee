# SPDX-License-Identifier: Apache-2.0
"""How far a run is: a line every so often, or a file for whoever draws it.

All of it is counted, not guessed: replies as they arrive, and the steps that the trunk
has taken. Only the time left is an estimate, from how long this run's rounds took.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from logging import INFO
from pathlib import Path

from atlas_flwr.config import RunConfig
from atlas_flwr.errors import TrunkError
from atlas_flwr.grids.progress import InFlight
from atlas_flwr.log import log
from atlas_flwr.protocol import keys
from atlas_flwr.remedies import every_step_crosses
from atlas_flwr.report.store import replace_text
from atlas_flwr.trunk import TrunkStats

__all__ = ["PROGRESS_FILE", "Progress", "Standing"]

PROGRESS_FILE = "ATLAS_PROGRESS"  # the environment's name for the file
LINE_EVERY, FILE_EVERY = 15.0, 0.5  # seconds
DOING = {
    "train": "training",
    "evaluate": "evaluating",
    keys.DESCRIBE: "asking clients who they are",
    keys.FINGERPRINT: "fingerprints",
}


@dataclass(frozen=True)
class Standing:
    """Where a run is.

    Attributes
    ----------
    doing : str
        In words.
    round, rounds : int
        The present one, 0 before the first; and of how many.
    clients, done, failed : int
        Asked in what is being done; of these, those that have answered, and those whose
        answer was an error.
    steps, planned_steps : int, optional
        That the trunk has taken in this round's training; ``None`` without a trunk, or
        where nobody knows how many it will be.
    examples_per_second : float, optional
        Through the trunk, since this round's training began.
    seconds_left : float, optional
        Until the last round ends; ``None`` before anything is known.
    """

    doing: str
    round: int
    rounds: int
    clients: int = 0
    done: int = 0
    failed: int = 0
    steps: int | None = None
    planned_steps: int | None = None
    examples_per_second: float | None = None
    seconds_left: float | None = None

    def line(self) -> str:
        """Write it for people, where nothing can be drawn."""
        failed = f", {self.failed} failed" if self.failed else ""
        planned = f" of {self.planned_steps}" if self.planned_steps else ""
        speed, left = self.examples_per_second, self.seconds_left
        parts = [
            f"round {self.round} of {self.rounds}" if self.round else "before round 1",
            self.doing,
            f"{self.done} of {self.clients} clients done{failed}",
            "" if self.steps is None else f"{self.steps}{planned} steps",
            "" if speed is None else f"{speed:.1f} examples/s",
            "" if left is None else f"about {duration(left)} left",
        ]
        return " · ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """Write a time to a precision that an estimate has."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


@dataclass
class Progress:
    """Tell how far a run is, as replies arrive.

    Parameters
    ----------
    config : RunConfig
        The run's.
    clock : Callable[[], float]
        Seconds.
    stats : Callable[[], TrunkStats], optional
        The trunk's account of itself.
    """

    config: RunConfig
    clock: Callable[[], float] = time.monotonic
    stats: Callable[[], TrunkStats] | None = None
    _began: float = 0.0  # this round
    _sent: float = 0.0  # what is in flight
    _told: float = field(default=-LINE_EVERY)
    _lasted: list[float] = field(default_factory=list)
    _steps_before: int = 0
    _round: int = 0
    _number: int = 0  # of the sending

    def begin(self, number: int) -> None:
        """Take note that a round begins; 0 is what comes before the first."""
        self._round, self._began, self._told = number, self.clock(), self.clock()

    def end_round(self) -> None:
        """Take note of how long the round took, and that the next begins."""
        if self._round:
            self._lasted.append(self.clock() - self._began)
        self.begin(self._round + 1)

    def saw(self, flight: InFlight) -> None:
        """Take note of replies; tell where it is time to."""
        if flight.number != self._number:
            self._number, self._sent = flight.number, self.clock()
            self._steps_before = self._trunk_steps() or 0
        file = os.environ.get(PROGRESS_FILE)
        if self.clock() - self._told < (FILE_EVERY if file else LINE_EVERY):
            return
        self._told = self.clock()
        standing = self.standing(flight)
        if file:
            replace_text(Path(file), json.dumps(asdict(standing)))
        else:
            log(INFO, "%s", standing.line())

    def waiting(self, connected: int, refused: int = 0) -> None:
        """Say that clients are waited for, if they are.

        Parameters
        ----------
        connected : int
            Nodes.
        refused : int
            Of these, those that cannot take part.
        """
        wanted, able = self.config.min_available_nodes, connected - refused
        if able < wanted and self.clock() - self._told >= LINE_EVERY:
            self._told = self.clock()
            told = f"waiting for clients: {able} of {wanted} are connected"
            if refused:
                told += f", beside {refused} that cannot take part; the log says why"
            log(INFO, "%s", told)

    def standing(self, flight: InFlight) -> Standing:
        """Return where the run is."""
        training = flight.kind == "train"
        total = self._trunk_steps() if training else None
        steps = None if total is None else max(total - self._steps_before, 0)
        planned = self._planned_steps(flight.sent) if steps is not None else None
        elapsed = self.clock() - self._sent
        known = steps is not None and elapsed > 0
        speed = (steps or 0) * self.config.batch_size / elapsed if known else None
        share = (steps or 0) / planned if planned else flight.came / (flight.sent or 1)
        return Standing(
            doing=DOING.get(flight.kind, flight.kind),
            round=self._round,
            rounds=self.config.num_rounds,
            clients=flight.sent,
            done=flight.came,
            failed=flight.failed,
            steps=steps,
            planned_steps=planned,
            examples_per_second=speed,
            seconds_left=self._left(share if training else 0.0),
        )

    def _left(self, share: float) -> float | None:
        """Estimate from the rounds that were, or in the first from its training."""
        elapsed = self.clock() - self._began
        after = self.config.num_rounds - self._round
        if self._lasted:
            usual = sum(self._lasted) / len(self._lasted)
            return max(usual - elapsed, 0.0) + after * usual
        if not self._round or share < 0.1:
            return None
        usual = elapsed / min(share, 1.0)
        return usual - elapsed + after * usual

    def _planned_steps(self, clients: int) -> int | None:
        config = self.config
        countable = every_step_crosses(config) and config.trunk_merge == 1
        return clients * config.local_steps * config.accumulate if countable else None

    def _trunk_steps(self) -> int | None:
        try:
            return self.stats().steps if self.stats else None
        except TrunkError:
            return None  # no count; what is wrong, the clients' errors tell
