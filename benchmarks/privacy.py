# SPDX-License-Identifier: Apache-2.0
"""What the best attack reads of a run, by defence and cut, and what the defence costs.

Run from the top of the repository::

    python benchmarks/privacy.py --seeds 0

Three clients of smollm2, one each on questions, spam (classified) and dialog (written),
each by itself, three rounds of eight steps, the wire recorded. Every attack knows the
defence. Prints a Markdown table, a row a defence and cut: of the clients' texts what
the best attack reads and which one that is, beside a guess and the most there was to
read (under a defence, what the same attack reads without it), then what the run has
learned, its bytes and its time. A finished run, and what attacks have read of it, are
kept in ``--runs``; delete its ``privacy.json`` to have it attacked anew.

Defences for tasks with classes alone, such as ``labels:1``, run without the third
client, which changes nothing for the others; of those that change labels, labels are
attacked. ``none@codec=int4`` or ``none@personal=head`` is a row without a defence, with
that key of the run.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import statistics
import time
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

from finished import is_finished

CLASSIFIED, WRITTEN = ("questions", "spam"), "dialog"
BASE = {
    "model": "smollm2",
    "trunk": "local",
    "clustering": "none",
    "aggregation": "none",
    "score-examples": 1,
    "record-wire": True,
}
CUTS = ("1/1", "2/1", "8/1")
DEFENCES = ("none", "gaussian:0.3", "gaussian:1", "gaussian:3", "topk:0.1")
ATTACKS = ("linear", "verified", "inverter", "optimised", "bisr")
OF_LABELS = ("label-gradient", "label-completion")
OF_TOKENS = ("verified", "inverter", "optimised", "restored")


def attacks(defence: str) -> tuple[str, ...]:
    of = {"labels": OF_LABELS, "tokens": OF_TOKENS, "santext": OF_TOKENS}
    return of.get(defence.partition(":")[0], ATTACKS)


def run(runs: Path, texts: int, job: tuple[str, str, int]) -> dict[str, Any]:
    import torch

    from atlas_flwr.cli.attack import main as attack
    from atlas_flwr.cli.overrides import parse_overrides
    from atlas_flwr.client_apps.app import app
    from atlas_flwr.privacy import parse_defence
    from atlas_flwr.server_apps.run import Run
    from atlas_flwr.testing import local_grid

    cut, asked_for, seed = job
    defence, _, key = asked_for.partition("@")
    tasks = (
        CLASSIFIED if parse_defence(defence).needs_classes else (*CLASSIFIED, WRITTEN)
    )
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    folder = runs / f"{cut}-{asked_for}-{seed}".translate(str.maketrans("/:=@", "----"))
    if not is_finished(folder):
        places = {"runs-dir": str(runs), "run-name": folder.name}
        asked = {"tasks": ",".join(tasks), "cut": cut, "defence": defence, "seed": seed}
        config = {**BASE, **asked, **places, **parse_overrides([key] if key else [])}
        began = time.process_time()
        with local_grid(app, len(tasks), run_config=config) as grid:
            Run.begin(config).execute(grid)
        (folder / "seconds").write_text(f"{time.process_time() - began:.0f}")
    if not (folder / "privacy.json").is_file():
        with redirect_stdout(StringIO()):
            names = ",".join(attacks(defence))
            attack([str(folder), f"--attacks={names}", f"--texts={texts}"])
    summary = json.loads((folder / "summary.json").read_text())
    first, last = summary["per_round"][0], summary["per_round"][-1]
    accuracy = last["accuracy"]
    return {
        "read": json.loads((folder / "privacy.json").read_text()),
        "accuracy": 100 * statistics.fmean(accuracy[task] for task in CLASSIFIED),
        "before": first["perplexity"].get(WRITTEN),
        "perplexity": last["perplexity"].get(WRITTEN),
        "up": summary["bytes_up"] / 2**20,
        "seconds": float((folder / "seconds").read_text()),
    }


def row(cut: str, defence: str, found: list[dict[str, Any]]) -> str:
    def mean(values: list[float], digits: int = 1) -> str:
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.{digits}f}{spread}"

    def read(name: str, what: str = "token_accuracy") -> list[float]:
        return [
            100 * score[what]
            for one in found
            for score in one["read"]
            if score["attack"] == name
        ]

    tried = [name for name in attacks(defence) if read(name)]  # some may not fit
    best = max(tried, key=lambda name: statistics.fmean(read(name)))
    cells = [
        mean(read(best)),
        f"`{best}`",
        mean(read(best, "baseline")),
        mean(read(best, "upper_bound")),
        mean([one["accuracy"] for one in found]),
        f"{mean([one['before'] for one in found])} → "
        + mean([one["perplexity"] for one in found])
        if found[0]["before"]
        else "—",
        mean([one["up"] for one in found], 0),
        mean([one["seconds"] for one in found], 0),
    ]
    return f"| {cut} | `{defence}` | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cuts", nargs="+", default=list(CUTS))
    parser.add_argument("--defences", nargs="+", default=list(DEFENCES))
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--runs", type=Path, default=Path("runs/privacy"))
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    cells = list(product(given.cuts, given.defences))
    print(
        "| cut | defence | read, % | by | guess, % | at most, % | accuracy, % "
        "| perplexity | up, MiB | CPU, s |"
    )
    print("| --- " * 10 + "|", flush=True)
    jobs = [(*cell, seed) for cell in cells for seed in given.seeds]
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        done = pool.imap(partial(run, given.runs, given.texts), jobs)
        for cut, defence in cells:
            print(row(cut, defence, [next(done) for _ in given.seeds]), flush=True)


if __name__ == "__main__":
    main()
