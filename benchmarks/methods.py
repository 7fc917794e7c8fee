# SPDX-License-Identifier: Apache-2.0
"""Aggregation modes, rank rules and published methods side by side, over seeds.

Run from the top of the repository::

    python benchmarks/methods.py --model minilm --seeds 0 1 2
    python benchmarks/methods.py --of methods --seeds 0
    python benchmarks/methods.py --of ranks --seeds 0 1 2

Devices differ and are dealt to clients by the seed, not by task, so that ranks are free
of tasks; clients, data, start, steps and learning rate are the same for all rows of a
table. A finished run is kept in ``--runs`` and not repeated.
Prints a Markdown table: mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
from pathlib import Path
from subprocess import PIPE, STDOUT

CLIENTS = 8
DEVICES = {
    "smollm2": "devices='192MiB,227MiB,292MiB' test-examples=32 fingerprint-batches=4",
    "minilm": "devices='110MiB,116MiB,152MiB' local-steps=10 batch-size=16 "
    "train-examples=256",
}
MODES = {
    "both": "aggregation='both'",
    "fold": "aggregation='fold'",
    "truncate": "aggregation='truncate'",
    "mean": "aggregation='mean'",
    "none": "aggregation='none'",
}
# Smaller devices cannot hold one rank for all layers.
LARGER = {
    "smollm2": "devices='197MiB,227MiB,292MiB' test-examples=32 fingerprint-batches=4",
    "minilm": "devices='124MiB,132MiB,152MiB' local-steps=10 batch-size=16 "
    "train-examples=256",
}
RANKS = {
    "by importance": "ranks='budget'",
    "one a device": "ranks='device'",
    "one for all": "ranks='uniform' lora-rank=4",
}
METHODS = {
    name: f"strategy='{name}'"
    for name in ("oracle", "hsplitlora", "flora", "flexlora", "hetlora", "splitlora")
}
METHODS["mira"] = "strategy='mira' mixing=0.5"
TABLES = {
    "modes": (MODES, DEVICES),
    "ranks": (RANKS, LARGER),
    "methods": (METHODS, DEVICES),
}


def run(setting: str, config: str, seed: int, folder: Path) -> dict[str, object]:
    summary = folder / "summary.json"
    if not summary.is_file():
        given = (
            f"{setting} {config} seed={seed} "
            f"runs-dir='{folder.parent}' run-name='{folder.name}'"
        )
        command = ["atlas-flwr", "run", "-n", str(CLIENTS), "-c", given]
        done = subprocess.run(command, stdout=PIPE, stderr=STDOUT, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}")
    return json.loads(summary.read_text())


def row(name: str, found: list[dict]) -> str:
    def over_seeds(values: list[float], digits: int = 1) -> str:
        mean = statistics.fmean(values)
        if len(values) < 2:
            return f"{mean:.{digits}f}"
        return f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}"

    last = [one["per_round"][-1] for one in found]
    mib = 2**20
    cells = [
        over_seeds([100 * r["mean_accuracy"] for r in last]),
        over_seeds([100 * min(r["client_accuracy"].values()) for r in last]),
        over_seeds([r["mean_loss"] for r in last], 3),
        over_seeds([one["bytes_up"] / mib for one in found], 0),
        over_seeds([one["bytes_down"] / mib for one in found], 0),
        over_seeds([one["client_peak_bytes"] / mib for one in found], 0),
        over_seeds([one["server_peak_bytes"] / mib for one in found], 0),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=DEVICES, default="minilm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--of", choices=TABLES, default="modes")
    parser.add_argument("--only", nargs="+", default=[], help="names that start so")
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"))
    given = parser.parse_args()
    print(
        "| method | accuracy, % | worst client, % | loss | up, MiB | down, MiB", end=""
    )
    print(" | client peak, MiB | trunk peak, MiB |")
    print("| --- " * 8 + "|")
    rows, settings = TABLES[given.of]
    setting = f"model='{given.model}' {settings[given.model]}"
    for name, config in rows.items():
        if given.only and not name.startswith(tuple(given.only)):
            continue
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", f"{given.of} {name}").strip("-")
        found = [
            run(setting, config, s, given.runs / f"{given.model}-{slug}-{s}")
            for s in given.seeds
        ]
        print(row(name, found), flush=True)


if __name__ == "__main__":
    main()
