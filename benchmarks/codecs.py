# SPDX-License-Identifier: Apache-2.0
"""What each codec does to bytes, time, loss and accuracy, over seeds.

Run from the top of the repository::

    python benchmarks/codecs.py --seeds 0 1 2

Eight clients of the four default tasks; clients, data, start and steps are the same for
all rows, and those of `make quick` with MiniLM. Runs are in this process's children,
without Ray, with one thread each, ``--jobs`` at once. A finished run is kept in
``--runs`` and not repeated. Bytes are all that clients send and receive: what crosses
the cut, and their Flower messages. Prints a Markdown table: mean and standard deviation
over seeds, and loss and accuracy less those of raw with the same seed.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from finished import is_finished

CLIENTS = 8
MODELS: dict[str, dict[str, Any]] = {
    "minilm": {"local-steps": 14, "batch-size": 16, "train-examples": 256},
    "smollm2": {"local-steps": 8, "fingerprint-batches": 4},
}
BASE = {"trunk": "local", "test-examples": 32}
FEDAVG = "fedavg"  # its row has no cut


def run(runs: Path, model: str, job: tuple[str, int]) -> dict[str, Any]:
    import torch

    from atlas_flwr.client_apps.app import app
    from atlas_flwr.server_apps.run import Run
    from atlas_flwr.testing import local_grid

    codec, seed = job
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    folder = runs / f"{model}-{codec}-{seed}"
    if not is_finished(folder):
        own = {"strategy": FEDAVG} if codec == FEDAVG else {"codec": codec}
        places = {"runs-dir": str(runs), "run-name": folder.name}
        config = {"model": model, **BASE, **MODELS[model], **own, "seed": seed}
        with local_grid(app, CLIENTS, run_config=config) as grid:
            Run.begin({**config, **places}).execute(grid)
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def spread(values: list[float], digits: int) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}"


def row(codec: str, found: list[dict[str, Any]], raw: list[dict[str, Any]]) -> str:
    def last(run: dict[str, Any], key: str) -> float:
        return float(run["per_round"][-1][key])

    pairs = list(zip(found, raw, strict=True))
    cells = [
        f"{statistics.fmean(f['bytes_up'] for f in found) / 2**20:.0f}",
        f"{statistics.fmean(f['bytes_down'] for f in found) / 2**20:.0f}",
        f"{statistics.fmean(r['bytes_up'] / f['bytes_up'] for f, r in pairs):.1f}",
        spread([last(f, "mean_loss") for f in found], 3),
        spread([last(f, "mean_loss") / last(r, "mean_loss") - 1 for f, r in pairs], 3),
        spread([100 * last(f, "mean_accuracy") for f in found], 1),
        f"{statistics.fmean(f['wall_seconds'] for f in found):.0f}",
    ]
    return f"| `{codec}` | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="minilm")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--codecs", nargs="+", default=["raw", "fp16", "int8", "int4"])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs-codecs"))
    given = parser.parse_args()
    jobs = [(codec, seed) for seed in given.seeds for codec in given.codecs]
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        work = partial(run, given.runs.resolve(), given.model)
        done = dict(zip(jobs, pool.imap(work, jobs), strict=True))
    print(
        "| codec | up, MiB | down, MiB | raw's bytes up / its | loss "
        "| loss / raw's - 1 | accuracy, % | seconds |\n" + "| --- " * 8 + "|"
    )
    raw = [done["raw", seed] for seed in given.seeds]
    for codec in given.codecs:
        print(row(codec, [done[codec, seed] for seed in given.seeds], raw))


if __name__ == "__main__":
    main()
