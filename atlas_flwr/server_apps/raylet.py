# SPDX-License-Identifier: Apache-2.0
"""Ray's own process on this machine, watched, as nobody says so when it is gone.

Flower's simulation and Ray wait for some 50 s then, and end without a word.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR

import psutil

from atlas_flwr.grids.recording import RESUME
from atlas_flwr.log import log

__all__ = ["watched_raylet"]

NAME = "raylet"
POLL = 1.0


@contextmanager
def watched_raylet(poll: float = POLL) -> Iterator[None]:
    """Say so, while it lasts, if the raylet that this process started is ended.

    Parameters
    ----------
    poll : float
        Seconds between looks.
    """
    over = threading.Event()
    look = (over, poll, _raylet())
    thread = threading.Thread(target=_watch, args=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(over: threading.Event, poll: float, seen: psutil.Process | None) -> None:
    while not over.wait(poll):
        seen = seen or _raylet()  # Ray starts a moment after the ServerApp
        if seen is None or _lives(seen):
            continue
        # Ray ends it itself, too, and says so a moment later.
        if not over.wait(poll) and _ray_is_up():
            log(
                ERROR,
                "Ray's own process on this machine (raylet, pid %d) was ended from "
                "outside, most likely for want of memory: no client can work any "
                "more, and the run is about to end. Run fewer clients at once "
                "(--client-cpus 2) and %s",
                seen.pid,
                RESUME,
            )
        return


def _raylet() -> psutil.Process | None:
    children = psutil.Process().children()
    return next((child for child in children if _name(child) == NAME), None)


def _name(process: psutil.Process) -> str:
    try:
        name: str = process.name()
    except psutil.NoSuchProcess:
        return ""
    return name


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _ray_is_up() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
