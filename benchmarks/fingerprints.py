# SPDX-License-Identifier: Apache-2.0
"""Clusters of real fingerprints over seeds: how often they are the tasks.

Run from the top of the repository. The first command computes each client's gradients
by batch, as a client does, and keeps them outside the repository; the second sketches
and clusters them, k being chosen::

    python benchmarks/fingerprints.py compute minilm --batches 16 --seeds 0-9
    python benchmarks/fingerprints.py score minilm --batches 16 --use 8,16 --seeds 0-9

With ``--tasks movies`` all clients have one task, and one cluster is right.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from atlas_flwr.clustering import cluster, fingerprint_parts, quality
from atlas_flwr.config import load_config
from atlas_flwr.data import (
    CausalCollator,
    ClassifierCollator,
    load_task,
    make_shard,
    sample_batches,
    tokenizer_of,
)
from atlas_flwr.seeds import derive_seed
from atlas_flwr.strategies.fingerprints import PLAN
from atlas_flwr.train.initial import FINGERPRINT_RANK, initial_state
from atlas_flwr.train.model import adapted_whole
from atlas_flwr.train.sketch import batch_gradients
from atlas_flwr.train.weights import ModelFiles


def gradients(
    options: argparse.Namespace, seed: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield every client's gradients, batch by batch."""
    config = load_config({"model": options.model, "seed": seed, "tasks": options.tasks})
    files = ModelFiles.of(config)
    outline, tokenizer = files.outline(), tokenizer_of(files.source)
    trunk = PLAN.trunk_range(outline.num_layers)
    shapes = {
        name: shape
        for name, shape in outline.shapes(config.target_list).items()
        if outline.block_of(name) not in trunk
    }
    state = initial_state(
        shapes, rank=FINGERPRINT_RANK, alpha=config.lora_alpha, seed=seed
    )
    tasks = [load_task(name) for name in config.task_list]
    make = CausalCollator if files.source.kind == "causal" else ClassifierCollator
    # B is zero: the unsplit model's gradients are the split one's, with no trunk.
    with adapted_whole(files.whole(), state, config.lora_alpha) as adapted:
        for client in range(options.clients):
            shard = make_shard(
                client,
                options.clients,
                tasks,
                train_examples=config.train_examples,
                test_examples=1,
                seed=seed,
                alpha=options.label_skew or None,
            )
            batches = sample_batches(
                shard.train,
                make(tokenizer, shard.task, config.max_length),
                # No example twice: parts must differ as independent draws do.
                batch_size=max(
                    1, min(config.batch_size, len(shard.train) // options.batches)
                ),
                steps=options.batches,
                seed=derive_seed(seed, "fingerprint", client),
            )
            yield from batch_gradients(
                adapted.model, batches, name=adapted.parameter_name
            )


def compute(options: argparse.Namespace, seed: int, path: Path) -> None:
    found: dict[str, list] = {}
    started = time.monotonic()
    for batch in gradients(options, seed):
        for name, gradient in batch.items():
            found.setdefault(name, []).append(gradient.numpy().reshape(-1).copy())
    shape = (options.clients, options.batches, -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: np.stack(v).reshape(shape) for name, v in found.items()})
    print(path.name, f"{time.monotonic() - started:.0f} s", flush=True)


def score(
    options: argparse.Namespace, seed: int, path: Path, use: int
) -> tuple[int, float, float]:
    """Return the k that was chosen, its ARI, and the ARI with k given."""
    stored = dict(np.load(path))
    sketches = np.stack(
        [
            fingerprint_parts(
                [
                    {name: v[client, b] for name, v in stored.items()}
                    for b in range(use)
                ],
                options.parts,
                seed=seed,
            )
            for client in range(options.clients)
        ]
    )
    names = options.tasks.split(",")
    tasks = [names[i % len(names)] for i in range(options.clients)]
    chosen, given = cluster(sketches, seed=seed), cluster(sketches, len(names))
    agreement = [quality(c.labels.tolist(), tasks).ari for c in (chosen, given)]
    return chosen.k, agreement[0], agreement[1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("do", choices=["compute", "score"])
    parser.add_argument("model")
    parser.add_argument("--seeds", default="0-9")
    parser.add_argument("--batches", type=int, default=12, help="that are computed")
    parser.add_argument("--use", default="12", help="comma list, of those computed")
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tasks", default="questions,spam,movies,news")
    parser.add_argument("--label-skew", type=float, default=0.0)
    cache = Path.home() / ".cache" / "atlas-flwr-fingerprints"
    parser.add_argument("--cache", type=Path, default=cache)
    options = parser.parse_args()
    torch.set_num_threads(1)
    first, _, last = options.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    skew = f"-skew{options.label_skew}" if options.label_skew else ""
    tasks = options.tasks.replace(",", "+") + skew
    stem = f"{options.model}-{options.clients}-{tasks}-{options.batches}"
    paths = {seed: options.cache / f"{stem}-{seed}.npz" for seed in seeds}
    if options.do == "compute":
        for seed, path in paths.items():
            if not path.exists():
                compute(options, seed, path)
        return
    for use in map(int, options.use.split(",")):
        found = [score(options, seed, path, use) for seed, path in paths.items()]
        right = [sum(row[i] == 1 for row in found) for i in (1, 2)]
        print(
            f"{stem}, {use} batches: k chosen {[row[0] for row in found]}, "
            f"ARI 1.0 in {right[0]} of {len(found)}; k given: {right[1]}",
            flush=True,
        )


if __name__ == "__main__":
    main()
