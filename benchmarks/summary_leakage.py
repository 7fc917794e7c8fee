# SPDX-License-Identifier: Apache-2.0
"""What a server that has texts of the same tasks writes from summary positions alone.

Run from the top of the repository::

    python benchmarks/summary_leakage.py

Two clients of smollm2, on questions and movies, three rounds of 16 steps at head 8 (or
another ``--head``) with four summary positions, their wire recorded; then the attack
``writer``, which has other texts of the same two tasks. Prints what it writes, and how
many nats a token of the texts costs it, shown their own crossing and shown another
text's of the same client. The run is kept in ``--runs``, and not run again.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
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
def nats(writer: Any, case: Any) -> tuple[float, float]:
    """Return nats a token, shown the text's own crossing, and another's."""
    own, other, tokens = 0.0, 0.0, 0
    owners = [seen.client for seen in case.seen]
    for i, (truth, kept) in enumerate(zip(case.truths, case.private, strict=True)):
        from atlas_flwr.privacy.knowledge import KnownText

        same = [j for j, owner in enumerate(owners) if owner == owners[i] and j != i]
        for j in (i, same[i % len(same)]):
            text = KnownText(truth.ids, case.seen[j].hidden, kept)
            states, wanted, crossing = writer._lesson(text)
            made = writer(states[None], [crossing])[0]
            scores = made @ writer.rows.T + writer._bias
            loss = float(F.cross_entropy(scores, wanted, reduction="sum"))
            own, other = (own + loss, other) if j == i else (own, other + loss)
        tokens += len(wanted)
    return own / tokens, other / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--head", type=int, default=8, help="blocks")
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--known", type=int, default=700, help="texts of the attacker")
    parser.add_argument("--steps", type=int, default=600, help="of its training")
    parser.add_argument("--tries", type=int, default=24, help="at each text")
    given = parser.parse_args()
    from atlas_flwr.cli import recorded
    from atlas_flwr.privacy.attacks import writing
    from atlas_flwr.privacy.scores import fitted, of_another, rouge_l
    from atlas_flwr.report import RunFolder

    logging.disable(logging.WARNING)
    recorded.TEXTS_KNOWN, writing.TRIES = given.known, given.tries
    folder = RunFolder.open(trained(given.runs, given.head))
    config, began = folder.config(), time.process_time()
    found = recorded.recordings(folder)
    (case,) = recorded.cases(config, found, given.texts, 0, config.task_list)
    print(f"{len(case.knowledge.known)} texts known", flush=True)
    with torch.no_grad():
        writer = writing.CrossingWriter(case.knowledge, given.steps)
    print(f"fitted after {time.process_time() - began:.0f} s", flush=True)
    own, other = nats(writer, case)
    print(f"nats a token: own crossing {own:.2f}, another's {other:.2f}", flush=True)
    truths = [
        t.ids[kept].tolist() for t, kept in zip(case.truths, case.private, strict=True)
    ]
    read = [
        writing.nearest(case.knowledge, seen, writer.tries(seen)).tolist()
        for seen in case.seen
    ]
    owners = [seen.client for seen in case.seen]
    for name, guesses in (("own", read), ("another's", of_another(owners, read))):
        guesses = fitted(guesses, truths)
        pairs = list(zip(guesses, truths, strict=True))
        right = sum(g == t for a, b in pairs for g, t in zip(a, b, strict=True))
        share = 100 * right / sum(map(len, truths))
        rouge = 100 * statistics.fmean(rouge_l(a, b) for a, b in pairs)
        whole = sum(a == b for a, b in pairs)
        print(
            f"{name}: {share:.1f} % of tokens in place, ROUGE-L {rouge:.1f}, "
            f"{whole} of {len(pairs)} whole texts",
            flush=True,
        )
    print(f"{time.process_time() - began:.0f} s of CPU")


if __name__ == "__main__":
    main()
