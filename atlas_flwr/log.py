# SPDX-License-Identifier: Apache-2.0
"""Our logger, a child of Flower's, and how a run of our own ServerApp speaks.

In somebody else's app our lines look like Flower's. In a run of our own they come
without a prefix, of Flower's only warnings are shown, and an error of ours is the last
word, without a traceback. ``FLWR_LOG_LEVEL``, where it is set, is what Flower shows.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

from flwr.supercore import log as flower_log

__all__ = ["end_with", "flower_log", "log", "plain_output"]

FLOWER = logging.getLogger("flwr")
OURS = logging.getLogger("flwr.atlas")
log = OURS.log
# `flower_log` is for what Flower's own strategies say as well: settings, samples.


class _Plain(logging.Handler):
    """Print to the present stdout, which Flower's processes replace."""

    def emit(self, record: logging.LogRecord) -> None:
        loud = record.levelno >= logging.WARNING
        label = f"{record.levelname.lower()}: " if loud else ""
        print(f"{label}{self.format(record)}", flush=True)


class _Chatter(logging.Filter):
    """Keep back our lines, which are printed already, and what is not worth a line."""

    def filter(self, record: logging.LogRecord) -> bool:
        asked = "FLWR_LOG_LEVEL" in os.environ
        return record.name != OURS.name and (asked or record.levelno >= logging.WARNING)


class _Workers(logging.Filter):
    """Tell once, of what a simulation's worker raised, what Flower logs three times.

    What remains has the worker's traceback. Of a worker that died there is none, and
    the run itself says so.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if os.path.basename(record.pathname) not in ("vce_api.py", "raybackend.py"):
            return True
        said = record.getMessage()
        again = said.startswith(("An exception was raised when", "Traceback (most"))
        return not again and " ClientAppActor\n" not in said


class _LastWord(logging.Filter):
    """Turn Flower's account of an error into the error's own words, and end there."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error
        self.said = False

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is self.error:
            record.msg, record.args, record.exc_info = str(self.error), (), None
            self.said = True
            return True
        return not (self.said and record.getMessage().startswith("Exit Code:"))


@contextmanager
def plain_output() -> Iterator[None]:
    """Print our lines as they are, and of Flower's only warnings, while it lasts."""
    ours = _Plain()
    filters: list[logging.Filter] = [_Chatter()]
    if os.environ.get("FLWR_LOG_LEVEL", "").upper() not in ("DEBUG", "INFO"):
        filters.append(_Workers())
    consoles = list(FLOWER.handlers)
    OURS.addHandler(ours)
    for handler, kept_back in product(consoles, filters):
        handler.addFilter(kept_back)
    try:
        yield
    finally:
        OURS.removeHandler(ours)
        for handler, kept_back in product(consoles, filters):
            handler.removeFilter(kept_back)


def end_with(error: Exception) -> None:
    """Prepare Flower's logger for an error that is about to end this process.

    Flower logs what a ServerApp raises with its traceback, and then its exit code with
    "An unhandled exception occurred". An error of ours was raised on purpose and says
    what to do: it is told once, as text, and nothing comes after.
    """
    FLOWER.addFilter(_LastWord(error))
