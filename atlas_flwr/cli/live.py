# SPDX-License-Identifier: Apache-2.0
"""A run's progress, drawn in the terminal below what the run says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

__all__ = ["drawn", "live"]

BAR = 24
STARTING = "starting Flower"


@contextmanager
def live(path: Path, slots: int | None) -> Iterator[Callable[[str], None]]:
    """Draw what a file says, twice a second; yield what prints a line above it.

    Parameters
    ----------
    path : Path
        Where the ServerApp writes its standing, in JSON.
    slots : int, optional
        Clients that can run at once, where that is known.
    """
    console = Console(highlight=False, soft_wrap=True)
    spinner = Spinner("dots")

    def say(line: str) -> None:
        console.print(Text.from_ansi(line.rstrip("\n")))

    def draw() -> RenderableType:
        return drawn(_read(path), slots, spinner)

    with Live(
        console=console, refresh_per_second=2, transient=True, get_renderable=draw
    ):
        yield say


def drawn(
    standing: dict[str, Any], slots: int | None, spinner: RenderableType = ""
) -> Table:
    """Lay a standing out in one line: round, clients, steps, speed, time left."""
    cells: list[RenderableType] = [spinner]
    if not standing:
        cells.append(STARTING)
    else:
        number, rounds = standing["round"], standing["rounds"]
        cells.append(f"round {number} of {rounds}" if number else "before round 1")
        cells.append(standing["doing"])
        cells.append(_bar(standing))
        cells.append(_clients(standing, slots))
        cells += _steps(standing)
    table = Table.grid(padding=(0, 1))
    table.add_row(*cells)
    return table


def _bar(standing: dict[str, Any]) -> ProgressBar:
    done, total = standing["steps"], standing["planned_steps"]
    if not total:
        done, total = standing["done"], standing["clients"]
    return ProgressBar(total=total or 1, completed=done or 0, width=BAR)


def _clients(standing: dict[str, Any], slots: int | None) -> str:
    done, asked = standing["done"], standing["clients"]
    words = [f"{done} of {asked} clients"]
    if slots and asked > done:
        words.append(f"{min(asked - done, slots)} running")
    if standing["failed"]:
        words.append(f"{standing['failed']} failed")
    return ", ".join(words)


def _steps(standing: dict[str, Any]) -> Iterator[str]:
    steps, planned = standing["steps"], standing["planned_steps"]
    if steps is not None:
        yield f"{steps}{f' of {planned}' if planned else ''} steps"
    if (speed := standing["examples_per_second"]) is not None:
        yield f"{speed:.1f} examples/s"
    if (left := standing["seconds_left"]) is not None:
        minutes, seconds = divmod(round(left), 60)
        yield f"{minutes}:{seconds:02} left"


def _read(path: Path) -> dict[str, Any]:
    """Read the standing; nothing before the ServerApp has written one."""
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
