# SPDX-License-Identifier: Apache-2.0
"""What a late round costs against an early one, by how a cluster's sum comes back.

Run from the top of the repository::

    python benchmarks/rounds.py --model minilm
    python benchmarks/rounds.py --model tiny --modes both fold

Six clients of two tasks, rank 8, whole runs in one process and on one thread: the
ServerApp, the ClientApps and the trunk, one client after the other. A dense float64
matrix for each cluster and layer adds up what the clients' training changed, and is
compared with what the server holds, after every round; that takes no part in the times,
which are CPU seconds from one aggregation to the next.
``trunk`` counts what the trunk's tensors take: its frozen weights, the products that
clusters share, and what its open sessions train. A line of JSON for each run goes to
``--out``, and those that are there are not run again; then a Markdown table is printed.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

CLIENTS, TASKS = 6, "questions,movies"
MODES = {
    "both": {"aggregation": "both"},
    "both, all sent": {"aggregation": "both", "flat-rounds": False},
    "fold": {"aggregation": "fold"},
    "truncate": {"aggregation": "truncate"},
}
SIZES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {},
    "minilm": {"test-examples": 16},
    "smollm2": {"max-length": 24, "batch-size": 4, "test-examples": 8},
}


class Watch:
    """Looks at the server's sums and the trunk's tensors, round by round."""

    def __init__(self) -> None:
        self.oracle: dict[tuple[str, str], Any] = {}
        self.error = 0.0
        self.spent = 0.0  # CPU seconds of looking
        self.cpu = [time.process_time()]  # of the rest, as each round was added up
        self.trunk: list[int] = [0]
        self.beyond: dict[str, list[float]] = {}

    def aggregate(self, real: Any, adapters: Any, members: Any) -> None:
        """Aggregate, and compare with the dense sums."""
        before = dict(adapters.groups)
        real(adapters, members)
        began = time.process_time()
        self.cpu.append(began - self.spent)
        for group, parts in members.items():
            self._add(adapters.rule, before.get(group), group, parts)
            held = adapters.groups[group]
            for name, found in held.factors.items():
                wanted = self.oracle[group, name]
                kept = _dense(found)
                if name in held.rest:
                    kept = kept + held.rest[name].double()
                off = float((kept - wanted).norm() / wanted.norm())
                self.error = max(self.error, off)
            self.beyond[group] = self._beyond(held, parts)
        self.spent += time.process_time() - began
        self.trunk.append(0)

    def _beyond(self, held: Any, parts: Sequence[Any]) -> list[float]:
        """Return squared norms: of sums beyond one round's ranks, and of sums."""
        beyond = whole = 0.0
        for name, found in held.factors.items():
            rank = sum(part.state.factors[name].rank for part in parts)
            energy = found.A.double().norm(dim=1) ** 4  # as sums are canonical
            left = float(held.rest[name].norm() ** 2) if name in held.rest else 0.0
            beyond += float(energy[rank:].sum()) + left
            whole += float(energy.sum()) + left
        return [beyond, whole]

    def _add(self, rule: Any, before: Any, group: str, parts: Sequence[Any]) -> None:
        from atlas_flwr.aggregation.products import Both, Truncate
        from atlas_flwr.lora import leading

        total = sum(part.weight for part in parts)
        for name in parts[0].state.factors:
            change: Any = 0.0
            for part in parts:
                found = part.state.factors[name]
                moved = _dense(found)
                if isinstance(rule, Both) and before is not None:
                    # What it was sent to train: of fold, and at first, its product is 0
                    sent = leading(before.factors[name], found.rank, scale=found.scale)
                    moved = moved - _dense(sent)
                change = change + part.weight / total * moved
            past = (
                0.0
                if isinstance(rule, Truncate)
                else self.oracle.get((group, name), 0.0)
            )
            self.oracle[group, name] = past + change

    def open(self, real: Any, engine: Any, spec: Any) -> str:
        """Open a session, and count what the trunk holds now."""
        token: str = real(engine, spec)
        seen = {t.data_ptr(): t.nbytes for t in engine.base.trunk.parameters()}
        for products in engine._shared.values():
            for found in products.values():
                seen |= {t.data_ptr(): t.nbytes for t in (found.A, found.B)}
        trained = 0
        for session in engine._table._sessions.values():
            # beside each number its gradient and AdamW's two moments
            trained += sum(4 * p.nbytes for p in session.parameters)
        self.trunk[-1] = max(self.trunk[-1], sum(seen.values()) + trained)
        return token


def _dense(factors: Any) -> Any:
    return factors.scale * (factors.B.double() @ factors.A.double())


def run(model: str, mode: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run once; return what the table needs."""
    import torch

    from atlas_flwr.aggregation.groups import ClusterAdapters
    from atlas_flwr.client_apps.app import app
    from atlas_flwr.server_apps.run import Run
    from atlas_flwr.testing import local_grid
    from atlas_flwr.trunk import TrunkEngine

    torch.set_num_threads(1)
    watch = Watch()
    aggregate, open_ = ClusterAdapters.aggregate, TrunkEngine.open
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        config = {
            "model": model,
            "tasks": TASKS,
            "trunk": "local",
            "num-clusters": 2,
            "num-rounds": given.rounds,
            "local-steps": given.steps,
            "train-examples": 64,
            "test-examples": 32,
            "fingerprint-batches": 4,
            "seed": given.seed,
            "runs-dir": folder,
            **SIZES[model],
            **MODES[mode],
        }
        for owner, name, new in (
            (
                ClusterAdapters,
                "aggregate",
                lambda a, m: watch.aggregate(aggregate, a, m),
            ),
            (TrunkEngine, "open", lambda e, s: watch.open(open_, e, s)),
        ):
            stack.enter_context(patch.object(owner, name, new))
        grid = stack.enter_context(local_grid(app, CLIENTS, run_config=config))
        grid.intercept = lambda message: grid.sent.clear() or "deliver"
        begun = Run.begin(config)
        begun.execute(grid)
        summary = json.loads(begun.folder.summary_path.read_text())
    rounds = [r for r in summary["per_round"] if r["round"]]
    return {
        "model": model,
        "mode": mode,
        "rounds": given.rounds,
        "steps": given.steps,
        "seed": given.seed,
        "accuracy": [r["mean_accuracy"] for r in rounds],
        "loss": [r["mean_loss"] for r in rounds],
        "bytes": [r["bytes_up"] + r["bytes_down"] for r in rounds],
        "seconds": [late - early for early, late in pairwise(watch.cpu)],
        "trunk": watch.trunk[1 : len(rounds) + 1],
        "held_back": [r["held_back"] for r in rounds],
        "error": watch.error,
        "beyond": max((b / w) ** 0.5 for b, w in watch.beyond.values()),
    }


def around(values: Sequence[float], number: int) -> float:
    """Return the median of a round and its two neighbours."""
    last = min(number + 1, len(values))
    return statistics.median(values[last - 3 : last])


def rows(found: Mapping[str, Any]) -> Iterator[str]:
    """Set a run in cells."""
    late, mib = found["rounds"], 2**20
    for what, scale, digits in (
        ("bytes", mib, 1),
        ("seconds", 1, 2),
        ("trunk", mib, 1),
    ):
        values = [value / scale for value in found[what]]
        # What the trunk holds between two aggregations; after the last nobody trains.
        early = around(values, 3) if what == "seconds" else values[2]
        now = around(values, late - 1) if what == "seconds" else values[late - 2]
        yield f"{early:.{digits}f}"
        yield f"{now:.{digits}f} ({now / early:.2f})"
    yield f"{100 * statistics.fmean(found['accuracy'][-5:]):.1f}"
    yield f"{statistics.fmean(found['loss'][-5:]):.4f}"
    yield f"{100 * found['held_back'][-1]:.1f}"
    yield f"{found['error']:.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SIZES, default="minilm")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/rounds.jsonl"))
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.touch()
    wanted = {"model": given.model, "rounds": given.rounds}
    wanted |= {"steps": given.steps, "seed": given.seed}
    print(
        "| | MiB, round 3 | late | s, round 3 | late | trunk MiB, round 3 | late",
        end="",
    )
    print(" | accuracy, % | loss | held back, % | error |")
    print("| --- " * 11 + "|")
    beyond: dict[str, str] = {}
    for mode in given.modes:
        done = [json.loads(line) for line in given.out.read_text().splitlines()]
        found = next((f for f in done if f | wanted | {"mode": mode} == f), None)
        if found is None:
            found = run(given.model, mode, given)
            with given.out.open("a") as file:
                file.write(json.dumps(found) + "\n")
        print(f"| {mode} | {' | '.join(rows(found))} |", flush=True)
        beyond[mode] = f"{mode} {100 * found['beyond']:.1f} %"
    print(f"\nof the sums beyond one round's ranks: {', '.join(beyond.values())}")


if __name__ == "__main__":
    main()
