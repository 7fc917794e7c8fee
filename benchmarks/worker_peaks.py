# SPDX-License-Identifier: Apache-2.0
"""What is told of a client's memory, by what its process has done before.

Run from the top of the repository::

    python benchmarks/worker_peaks.py --before nothing scored sketched
    python benchmarks/worker_peaks.py --before scored --keep-freed

A worker of a simulation answers for one client after the other. Each row is a process
that has done this before, and then trains for three clients of `make demo-generation`
(SmolLM2, cut 2/1), with a trunk that answers with what it is sent: what their meters
tell, in MiB. With ``--keep-freed`` nothing is given back before a meter starts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from contextlib import nullcontext
from typing import Any
from unittest import mock

from atlas_flwr.client_apps import trunk as client_trunk
from atlas_flwr.client_apps.identity import Identity
from atlas_flwr.client_apps.round import ClientRound
from atlas_flwr.config import RunConfig, load_config
from atlas_flwr.lora import Scaling
from atlas_flwr.protocol.layout import write_state
from atlas_flwr.split import SplitPlan
from atlas_flwr.train import memory
from atlas_flwr.train.echo import Echo
from atlas_flwr.train.initial import initial_state
from atlas_flwr.train.weights import ModelFiles

BEFORE = ("nothing", "scored", "sketched")
CLIENTS = (0, 1, 2)
MIB = 1 << 20
PLAN = SplitPlan(2, 1)
RUN = {
    "tasks": "french,german,dialog",
    "model": "smollm2",
    "local-steps": 4,
    "train-examples": 288,
    "test-examples": 8,
    "score-examples": 0,
    "max-length": 64,
    "fingerprint-batches": 4,
}


def rounds(config: RunConfig) -> list[ClientRound]:
    """Make a round of each client, as its first adapters begin it."""
    from flwr.app import ConfigRecord

    files = ModelFiles.of(config)
    shapes, _ = files.outline().shapes_by_side(config.target_list, PLAN)
    scaling = Scaling(config.lora_alpha, config.use_rslora)
    state = initial_state(shapes, rank=config.lora_rank, scaling=scaling, seed=0)
    entries = ConfigRecord({"server-round": 1, "plan": str(PLAN)})
    return [
        ClientRound(config, Identity(i, 6, None), files, entries, write_state(state))
        for i in CLIENTS
    ]


def measured(before: str, *, keeps: bool) -> None:
    """Print what each client's meter tells."""
    made = rounds(load_config(RUN))
    kept: Any = mock.patch.object(memory, "give_back_freed_memory")
    with mock.patch.object(client_trunk, "connect_all", return_value=Echo()):
        for one in made:
            if before == "scored":
                one.evaluate()
            elif before == "sketched":
                one.fingerprint()
        with kept if keeps else nullcontext():
            for one in made:
                _, metrics, _ = one.train()
                print(int(str(metrics["peak-bytes"])) // MIB)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", nargs="+", default=list(BEFORE), choices=BEFORE)
    parser.add_argument("--keep-freed", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        measured(given.before[0], keeps=given.keep_freed)
        return
    names = [f"client {n}" for n in CLIENTS]
    print(f"| before | {' | '.join(names)} |\n| --- |{' --- |' * len(names)}")
    for before in given.before:
        words = [sys.executable, __file__, "--one", "--before", before]
        words += ["--keep-freed"] if given.keep_freed else []
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        print(f"| {before} | {' | '.join(done.stdout.split())} |", flush=True)


if __name__ == "__main__":
    main()
