# SPDX-License-Identifier: Apache-2.0
"""Seconds a round and peak memory, by the number of virtual clients.

Run from the top of the repository::

    python benchmarks/fleet.py 10 100 1000

At most 50 clients train and 50 evaluate in a round. Prints a Markdown table. The memory
of the ServerApp's process and of the largest worker is the most resident at any second.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROUNDS = 3
SAMPLED = 50
MIB = 2**20


def run(count: int, runs: Path) -> tuple[dict, dict[str, int]]:
    fraction = min(SAMPLED / count, 1.0)
    config = (
        f"model='tiny' num-rounds={ROUNDS} local-steps=2 fingerprint-batches=1 "
        "fingerprint-parts=1 "
        f"train-examples=16 test-examples=8 fraction-train={fraction} "
        f"fraction-evaluate={fraction} runs-dir='{runs}' run-name='{count}'"
    )
    command = ["atlas-flwr", "run", "-n", str(count), "-c", config]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peaks = {"server": 0, "worker": 0}
    while started.poll() is None:
        for kind, size in sizes(started.pid):
            peaks[kind] = max(peaks[kind], size)
        time.sleep(1)
    if started.returncode:
        raise SystemExit(f"the run with {count} clients failed")
    return json.loads((runs / str(count) / "summary.json").read_text()), peaks


def sizes(parent: int) -> list[tuple[str, int]]:
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        try:
            name, size = " ".join(process.cmdline()), process.memory_info().rss
        except psutil.Error:  # it ended meanwhile
            continue
        if "ray::ClientAppActor" in name:
            found.append(("worker", size))
        elif "simulation" in name and "flower-superlink" not in name:
            found.append(("server", size))
    return found


def main(counts: list[int]) -> None:
    rounds = " | ".join(map(str, range(2, ROUNDS + 1)))
    print(
        f"| clients | in a round | seconds, round 1 | {rounds} | trunk MiB, 1 | "
        f"{rounds} | ServerApp MiB | worker MiB |"
    )
    print("| --- " * (4 + 2 * ROUNDS) + "|")
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            summary, peaks = run(count, Path(folder))
        told = summary["per_round"][1:]
        seconds = " | ".join(f"{r['seconds']:.0f}" for r in told)
        trunk = " | ".join(f"{r['server_peak_bytes'] / MIB:.0f}" for r in told)
        others = " | ".join(f"{size / MIB:.0f}" for size in peaks.values())
        asked = min(count, SAMPLED)
        print(f"| {count} | {asked} | {seconds} | {trunk} | {others} |", flush=True)


if __name__ == "__main__":
    main([int(count) for count in sys.argv[1:]] or [10, 100, 1000])
