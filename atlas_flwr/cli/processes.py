# SPDX-License-Identifier: Apache-2.0
"""Processes that are started, and that all end however the command does."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

import psutil

__all__ = ["end_tree", "ended_by_signals", "piped"]

STOP_TIMEOUT = 10.0
ENDINGS = (signal.SIGTERM, signal.SIGHUP)  # asked to go; the terminal was closed


@contextmanager
def piped(
    command: Sequence[str], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Start a command; end it as well when the block ends by an exception."""
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",  # a library's half a character is no reason to end a run
        bufsize=1,
    )
    with process:
        complete = False
        try:
            yield process
            complete = True
        finally:
            if not complete:
                process.terminate()


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process and its descendants, politely first; some leave its session.

    Ctrl-C, which the impatient repeat, is not heard meanwhile: it would leave half.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _end_family(process)
    finally:
        signal.signal(signal.SIGINT, before)


def _end_family(process: subprocess.Popen[bytes]) -> None:
    try:
        root = psutil.Process(process.pid)
        family = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        process.wait()
        return
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for member in family:
            try:
                end(member)
            except psutil.NoSuchProcess:
                continue
        _, family = psutil.wait_procs(family, timeout=STOP_TIMEOUT)
    process.wait()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does: nothing is left running.

    A second signal does not disturb the unwinding. What is ignored, as SIGHUP is under
    ``nohup``, stays so.
    """
    before = {number: signal.getsignal(number) for number in ENDINGS}
    heeded = [number for number in ENDINGS if before[number] is not signal.SIG_IGN]

    def leave(number: int, frame: FrameType | None) -> None:
        for heard in heeded:
            signal.signal(heard, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in heeded:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])
