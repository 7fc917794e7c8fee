# SPDX-License-Identifier: Apache-2.0
"""Peers of a whole fleet really run: virtual clients, a third of them hosts.

Run from the top of the repository::

    python benchmarks/peer_fleet.py 100            # in this process
    python benchmarks/peer_fleet.py 12 --ray       # clients and peers are Ray actors

The tiny model, one round. In this process a peer is an engine of its own, and the run
is done again with one central trunk, to compare what was learned. With ``--ray`` memory
of the actors of peers is told, where what they have in common is counted once in all
(PSS), of the second in which they took most.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from atlas_flwr.client_apps.app import app
from atlas_flwr.report import RunFolder
from atlas_flwr.server_apps.run import Run
from atlas_flwr.testing import local_grid
from atlas_flwr.train.memory import PeakMeter

MIB = 2**20
CONFIG: dict[str, Any] = {
    "model": "tiny",
    "tasks": "questions,movies",
    "num-rounds": 1,
    "num-clusters": 2,
    "local-steps": 2,
    "train-examples": 16,
    "test-examples": 4,
    "fingerprint-batches": 1,
    "fingerprint-parts": 1,
    "cut": "1/1",
}
LENT = {"trunk": "peers", "peer-memory": "1GiB,0,0"}


def here(count: int, runs: Path, name: str, **more: str) -> tuple[RunFolder, float]:
    """Do a run in this process; return its folder, and MB above those before."""
    config = {**CONFIG, "runs-dir": str(runs), "run-name": name, **more}
    with PeakMeter() as meter, local_grid(app, count, config) as grid:
        begun = Run.begin(config, config)
        begun.execute(grid)
    return begun.folder, meter.peak_bytes / 1e6


def digest(folder: RunFolder) -> str:
    """Hash the adapters that a run exported."""
    found = hashlib.sha256()
    for path in sorted((folder.path / "adapters").rglob("*.safetensors")):
        found.update(path.read_bytes())
    return found.hexdigest()


def with_ray(count: int, runs: Path) -> dict[str, int]:
    """Do a run of Flower's simulation; return the MB of its peers' actors."""
    words = {**CONFIG, **LENT, "runs-dir": str(runs), "run-name": "ray"}
    config = " ".join(
        f"{k}={v!r}" if isinstance(v, str) else f"{k}={v}" for k, v in words.items()
    )
    command = [sys.executable, "-m", "atlas_flwr.cli", "run", "-n", str(count)]
    command += ["--client-cpus", "2", "-c", config]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    most: dict[str, int] = {}
    while started.poll() is None:
        now = dict(actors(started.pid))
        if sum(now.values()) > sum(most.values()):
            most = now
        time.sleep(1)
    if started.returncode:
        raise SystemExit(f"the run with {count} clients failed")
    return most


def actors(parent: int) -> Iterator[tuple[str, int]]:
    """Yield the peers that run now, and their MB."""
    for process in psutil.Process(parent).children(recursive=True):
        try:
            if "TrunkActor" in " ".join(process.cmdline()):
                size = process.memory_full_info().pss
                yield str(process.pid), int(size / 1e6)
        except psutil.Error:  # it ended meanwhile
            continue


def told(path: Path) -> str:
    """Say what a run's summary has of its peers."""
    found = json.loads((path / "summary.json").read_text())
    guests = found["carried"].values()
    return (
        f"{found['num_clients']} clients, {len(guests)} hosts of at most "
        f"{max(guests)} guests, {found['sat_out']} sat out, "
        f"{found['wall_seconds']:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clients", type=int)
    parser.add_argument("--ray", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        if given.ray:
            most = with_ray(given.clients, runs)
            sizes = sorted(most.values())
            print(told(runs / "ray"))
            print(
                f"{len(sizes)} actors, {sum(sizes)} MB: {sizes[0]} to {sizes[-1]} each"
            )
            return
        peers, size = here(given.clients, runs, "peers", **LENT)
        print(told(peers.path), f"and {size:.0f} MB", flush=True)
        central, _ = here(given.clients, runs, "central", trunk="local")
        same = digest(peers) == digest(central)
        print(f"the bits of one central trunk: {'yes' if same else 'NO'}")


if __name__ == "__main__":
    main()
