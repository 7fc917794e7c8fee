# SPDX-License-Identifier: Apache-2.0
"""Seconds a round and peak memory, by the number of virtual clients.

Run from the top of the repository::

    python benchmarks/fleet.py 10 100 1000

At most 50 clients train and 50 evaluate in a round. Prints a Markdown table.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 3
SAMPLED = 50


def run(count: int, runs: Path) -> dict[str, object]:
    fraction = min(SAMPLED / count, 1.0)
    config = (
        f"model='tiny' num-rounds={ROUNDS} local-steps=2 fingerprint-batches=1 "
        f"train-examples=16 test-examples=8 fraction-train={fraction} "
        f"fraction-evaluate={fraction} runs-dir='{runs}' run-name='{count}'"
    )
    command = ["atlas-flwr", "run", "-n", str(count), "-c", config]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((runs / str(count) / "summary.json").read_text())


def main(counts: list[int]) -> None:
    print("| clients | in a round | seconds, round 1 | 2 | 3 | trunk MiB, 1 | 2 | 3 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            rounds = run(count, Path(folder))["per_round"][1:]
        seconds = " | ".join(f"{r['seconds']:.0f}" for r in rounds)
        peaks = " | ".join(f"{r['server_peak_bytes'] / 2**20:.0f}" for r in rounds)
        print(f"| {count} | {min(count, SAMPLED)} | {seconds} | {peaks} |", flush=True)


if __name__ == "__main__":
    main([int(count) for count in sys.argv[1:]] or [10, 100, 1000])
