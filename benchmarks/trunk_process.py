# SPDX-License-Identifier: Apache-2.0
"""`atlas-flwr trunk` in a process of its own, which is killed and started again."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from atlas_flwr.trunk.transports.access import Access

REPOSITORY = Path(__file__).parents[1]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


@dataclass
class TrunkProcess:
    """A trunk that serves once this is made.

    Attributes
    ----------
    folder : Path
        Keeps what it keeps.
    keys : Mapping[str, object]
        Of its run config.
    more : Sequence[str]
        Further words of the command.
    port : int
        Where it listens, each time that it is started.
    starts : int
        How often it was.
    """

    folder: Path
    keys: Mapping[str, object]
    more: Sequence[str] = ()
    port: int = field(default_factory=free_port)
    starts: int = field(default=0, init=False)
    running: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start it, and wait until it serves."""
        self.starts += 1
        self.running = subprocess.Popen(
            [
                *(sys.executable, "-m", "atlas_flwr.cli", "trunk", str(REPOSITORY)),
                *("-c", " ".join(f"{k}={v!r}" for k, v in self.keys.items())),
                *("--listen", f"127.0.0.1:{self.port}"),
                *("--folder", str(self.folder), *self.more),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for line in self.running.stdout or ():
            if "serves at" in line:
                return
        raise AssertionError("the trunk did not start")

    def kill(self) -> None:
        """End it as a machine that is switched off does."""
        self.running.send_signal(signal.SIGKILL)
        self.running.wait()

    @property
    def access(self) -> Access:
        """The way to it."""
        return Access.read(self.folder / "access.json")

    @property
    def memory(self) -> float:
        """MiB that it holds."""
        return float(psutil.Process(self.running.pid).memory_info().rss) / (1 << 20)
