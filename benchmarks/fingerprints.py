# SPDX-License-Identifier: Apache-2.0
"""Clusters of real fingerprints over seeds: how often they are the tasks.

Run from the top of the repository. The first command computes each client's gradients
by batch, as a client does, and keeps them outside the repository; the second sketches
and clusters them, k being chosen::

    python benchmarks/fingerprints.py compute minilm --batches 16 --seeds 0-9
    python benchmarks/fingerprints.py score minilm --batches 16 --use 8,16 --seeds 0-9

``drift`` and ``mix`` ask of the same gradients whether changed clients are named, and
where clients lie that mix two tasks. With ``--tasks movies`` all clients have one task,
and one cluster is right.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from atlas_flwr.clustering import (
    cluster,
    detect_drift,
    fingerprint_parts,
    memberships,
    noised,
    quality,
)
from atlas_flwr.cohort.fingerprints import PLAN
from atlas_flwr.config import load_config
from atlas_flwr.data import (
    CausalCollator,
    ClassifierCollator,
    load_task,
    make_shard,
    sample_batches,
    tokenizer_of,
)
from atlas_flwr.lora import Scaling
from atlas_flwr.seeds import derive_seed
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
    tokenizer, scaling = tokenizer_of(files.source), Scaling(config.lora_alpha)
    shapes, _ = files.outline().shapes_by_side(config.target_list, PLAN)
    state = initial_state(shapes, rank=FINGERPRINT_RANK, scaling=scaling, seed=seed)
    tasks = [load_task(name) for name in config.task_list]
    make = CausalCollator if files.source.kind == "causal" else ClassifierCollator
    # B is zero: the unsplit model's gradients are the split one's, with no trunk.
    with adapted_whole(files.whole(), state, scaling) as adapted:
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


def sketch(
    options: argparse.Namespace,
    seed: int,
    stored: dict[str, np.ndarray],
    wanted: list[tuple[int, int]],
) -> np.ndarray:
    """Sketch the batches ``wanted``, pairs of a client and one of its batches."""
    batches = [{name: v[i, b] for name, v in stored.items()} for i, b in wanted]
    return fingerprint_parts(batches, options.parts, seed=seed)


def sketches(
    options: argparse.Namespace, seed: int, path: Path, which: range
) -> np.ndarray:
    stored = dict(np.load(path))
    clients = range(options.clients)
    return np.stack(
        [sketch(options, seed, stored, [(i, b) for b in which]) for i in clients]
    )


def tasks_of(options: argparse.Namespace) -> list[str]:
    names = options.tasks.split(",")
    return [names[i % len(names)] for i in range(options.clients)]


def score(options: argparse.Namespace, paths: dict[int, Path], use: int) -> str:
    """Choose k, and give it; by parts, and by silhouettes of what they add up to."""
    tasks, ks, right = tasks_of(options), [], [0, 0, 0]
    for seed, path in paths.items():
        points = sketches(options, seed, path, range(use))
        if options.epsilon:
            units = [p / np.linalg.norm(p) for p in points.astype(float)]
            seeds = [derive_seed(seed, "noise", i) for i in range(len(units))]
            points = np.stack(
                [
                    noised(unit, options.epsilon, 1e-5, seed=own)
                    for unit, own in zip(units, seeds, strict=True)
                ]
            )
        found = [
            cluster(points, seed=seed, method=options.method),
            cluster(points, len(set(tasks)), seed=seed, method=options.method),
            cluster(points.mean(1), seed=seed, method=options.method),
        ]
        ks.append(found[0].k)
        for i, clusters in enumerate(found):
            right[i] += quality(clusters.labels.tolist(), tasks).ari == 1
    return (
        f"k {ks}; ARI 1.0 in {right[0]} of {len(ks)}; with k given in {right[1]}; "
        f"by silhouette in {right[2]}"
    )


def drift(options: argparse.Namespace, paths: dict[int, Path], use: int) -> str:
    """Compare the first batches with the last; then let client after client change."""
    alarms, named, tried, others = 0, 0, 0, 0
    for seed, path in paths.items():
        before = sketches(options, seed, path, range(use))
        after = sketches(options, seed, path, range(use, 2 * use))
        alarms += detect_drift(before, after).drifted.any()
        for client in range(options.clients - 1):
            moved = after.copy()
            moved[client] = after[client + 1]  # who has the next task
            found = detect_drift(before, moved).drifted
            named, tried = named + found[client], tried + 1
            others += np.delete(found, client).any()
    return (
        f"false alarms in {alarms} of {len(paths)}; changes named {named} of {tried}, "
        f"and anyone else in {others}"
    )


def mix(options: argparse.Namespace, paths: dict[int, Path], use: int) -> str:
    """Let a newcomer have batches of two tasks; tell its mean memberships."""
    rows, first = [], options.clients // 2  # not of the clients that were clustered
    for seed, path in paths.items():
        stored = dict(np.load(path))
        points = sketches(options, seed, path, range(use))[:first]
        clusters = cluster(points, len(set(tasks_of(options))), seed=seed)
        rng = np.random.default_rng(seed)
        for share in (0, 1, 2, 3, 4):
            turns = [first + (4 * b < share * use) for b in range(use)]
            whose = rng.permutation(turns)
            wanted = [(client, batch) for batch, client in enumerate(whose)]
            newcomer = sketch(options, seed, stored, wanted)
            found = memberships(newcomer[None], clusters)[0]
            rows.append([found[clusters.labels[i]] for i in (0, 1)])
    means = np.array(rows).reshape(len(paths), 5, 2).mean(0).round(2).tolist()
    return f"memberships in two tasks, at 0, 1/4 .. 1 of the second: {means}"


DO = {"score": score, "drift": drift, "mix": mix}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("do", choices=["compute", *DO])
    parser.add_argument("model")
    parser.add_argument("--seeds", default="0-9")
    parser.add_argument("--batches", type=int, default=12, help="that are computed")
    parser.add_argument("--use", default="12", help="comma list, of those computed")
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tasks", default="questions,spam,movies,news")
    parser.add_argument("--method", default="kmeans")
    parser.add_argument("--epsilon", type=float, default=0.0, help="noise sketches")
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
        found = DO[options.do](options, paths, use)
        print(f"{stem}, {use} batches: {found}", flush=True)


if __name__ == "__main__":
    main()
