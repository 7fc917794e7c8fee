# SPDX-License-Identifier: Apache-2.0
"""What a server that has texts of the same tasks writes from summary positions alone.

Run from the top of the repository::

    python benchmarks/summary_leakage.py --tasks questions

Two clients of smollm2, on questions and movies, three rounds of 16 steps at head 8 (or
another ``--head``) with four summary positions, their wire recorded. Prints how well
what crossed in a step is told from the step's other texts by who has them all; then of
the attack ``writer``, which has other texts of the tasks that it attacks, how many nats
a token of the texts costs it, shown their own crossing and shown another text's of the
same client; and what it writes. The run is kept in ``--runs``, and not run again.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finished import is_finished

BASE = {
    "model": "smollm2",
    "trunk": "local",
    "tasks": "questions,movies",
    "clustering": "none",
    "aggregation": "none",
    "ranks": "uniform",
    "record-wire": True,
    "summary-positions": 4,
    "local-steps": 16,
    "fingerprint-batches": 4,
    "evaluate-every": 3,
}


def trained(runs: Path, head: int) -> Path:
    from atlas_flwr.client_apps.app import app
    from atlas_flwr.server_apps.run import Run
    from atlas_flwr.testing import local_grid

    folder = runs / f"summary4-head{head}"
    if not is_finished(folder):
        named = {"runs-dir": str(runs), "run-name": folder.name}
        config = {**BASE, **named, "cut": f"{head}/1"}
        with local_grid(app, 2, run_config=config) as grid:
            Run.begin(config).execute(grid)
    return folder


@torch.no_grad()
def told_apart(model: Any, recording: Any, step: int) -> str:
    """Say how far what crossed in a step is from what the sent head makes of its texts.

    In units of how its texts' rows differ, row by row and number by number; as it is,
    and less the step's mean.
    """
    seen = [i for i, o in enumerate(recording.observations) if o.step == step]
    came = torch.stack([recording.observations[i].hidden for i in seen])
    made = torch.cat(
        [
            model.crossing(
                recording.observations[i], torch.tensor([recording.truths[i].prompt])
            )
            for i in seen
        ]
    )
    spread = (made - made.mean(0)).square().mean(0).sqrt()
    spread = spread.clamp(min=1e-3 * float(made.square().mean().sqrt()))
    differing = [(rows - rows.mean(0)) / spread for rows in (came, made)]
    found = []
    for one, other in ((came / spread, made / spread), differing):
        apart = (one[:, None] - other[None]).flatten(2).norm(dim=2)
        right = int((apart.argmin(1) == torch.arange(len(seen))).sum())
        off = (apart.sum() - apart.trace()) / (apart.numel() - len(seen))
        own = float(apart.diag().mean())
        found.append(f"own {own:.1f}, other {off:.1f}, {right} of {len(seen)} told")
    return f"client {recording.client} step {step}: {'; less the mean '.join(found)}"


@torch.no_grad()
def nats(writer: Any, case: Any) -> tuple[list[float], list[float], list[int]]:
    """Return each text's nats, shown its own crossing and another's, and tokens."""
    from atlas_flwr.privacy.knowledge import KnownText

    own, other, tokens = [], [], []
    shown = [writer.shown(seen) for seen in case.seen]
    owners = [seen.client for seen in case.seen]
    for i, (truth, kept) in enumerate(zip(case.truths, case.private, strict=True)):
        same = [j for j, owner in enumerate(owners) if owner == owners[i] and j != i]
        count = len(truth.ids[kept]) + 1
        for j, into in ((i, own), (same[i % len(same)], other)):
            loss = writer([KnownText(truth.ids, shown[j], kept)])
            into.append(float(loss) * count)
        tokens.append(count)
    return own, other, tokens


def interval(values: Any, sizes: Any) -> str:
    """Say a ratio of sums in % or nats, with 95 % of it by resampling texts."""
    values, sizes = np.array(values), np.array(sizes)
    drawn = np.random.default_rng(0).integers(len(sizes), size=(1000, len(sizes)))
    ratios = values[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return f"{values.sum() / sizes.sum():.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--head", type=int, default=8, help="blocks")
    parser.add_argument("--tasks", default=BASE["tasks"], help="that are attacked")
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--known", type=int, default=1600, help="texts of the attacker")
    parser.add_argument(
        "--steps", type=int, default=300, help="of its training; 0 for none"
    )
    parser.add_argument("--tries", type=int, default=24, help="at each text")
    parser.add_argument("--dtype", default="float32", help="of the attacker's model")
    parser.add_argument("--show", action="store_true", help="what was read of each")
    given = parser.parse_args()
    from atlas_flwr.budget import return_freed_memory
    from atlas_flwr.cli import recorded
    from atlas_flwr.privacy.attacks import writing
    from atlas_flwr.privacy.scores import fitted, of_another, rouge_l
    from atlas_flwr.report import RunFolder

    logging.disable(logging.WARNING)
    return_freed_memory()  # 15 GB were seen without
    recorded.TEXTS_KNOWN, writing.TRIES = given.known, given.tries
    folder = RunFolder.open(trained(given.runs, given.head))
    config, began = folder.config(), time.process_time()
    tasks = given.tasks.split(",")
    found = [
        recording
        for recording in recorded.recordings(folder)
        if config.task_of(int(recording.client)) in tasks
    ]
    (case,) = recorded.cases(config, found, given.texts, 0, tasks)
    spent = time.process_time() - began
    print(f"{len(case.knowledge.known)} texts known, {spent:.0f} s", flush=True)
    for recording in case.knowledge.model.recordings:
        for step in (0, 4, 8, 12, 15):
            print(told_apart(case.knowledge.model, recording, step), flush=True)
    if not given.steps:
        return
    load, dtype = case.knowledge.whole, getattr(torch, given.dtype)
    knows = replace(case.knowledge, whole=lambda: load().to(dtype))
    with torch.no_grad():
        writer = writing.CrossingWriter(knows, given.steps)
    print(f"fitted after {time.process_time() - began:.0f} s", flush=True)
    own, other, tokens = nats(writer, case)
    gained = [b - a for a, b in zip(own, other, strict=True)]
    for name, values in (("own", own), ("another's", other), ("gained", gained)):
        print(f"nats a token, {name}: {interval(values, tokens)}", flush=True)
    truths = [
        t.ids[kept].tolist() for t, kept in zip(case.truths, case.private, strict=True)
    ]
    read, greedy = [], []
    for seen in case.seen:
        tries = writer.tries(seen)
        read.append(writer.nearest(seen, tries).tolist())
        greedy.append(tries[0])
    owners = [seen.client for seen in case.seen]
    kinds = {
        "own": read,
        "another's": of_another(owners, read),
        "own, likeliest": greedy,
        "another's, likeliest": of_another(owners, greedy),
    }
    for name, guesses in kinds.items():
        rouge = [100 * rouge_l(a, b) for a, b in zip(guesses, truths, strict=True)]
        guesses = fitted(guesses, truths)
        right = [
            100 * sum(g == t for g, t in zip(a, b, strict=True))
            for a, b in zip(guesses, truths, strict=True)
        ]
        whole = sum(a == b for a, b in zip(guesses, truths, strict=True))
        print(
            f"{name}: tokens in place, % {interval(right, [*map(len, truths)])}; "
            f"ROUGE-L {interval(rouge, [1] * len(rouge))}; "
            f"{whole} of {len(truths)} whole texts",
            flush=True,
        )
    if given.show:
        spell = case.spelled
        for guess, truth in zip(read, truths, strict=True):
            print("".join(spell(truth)), "|", "".join(spell(guess)))
    print(f"{time.process_time() - began:.0f} s of CPU")


if __name__ == "__main__":
    main()
