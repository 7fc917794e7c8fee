# SPDX-License-Identifier: Apache-2.0
"""Gradients that fingerprints are made of, computed once over seeds and kept.

Run from the top of the repository, then see what clusters they make::

    python benchmarks/fingerprints.py compute minilm --seeds 0-9 --batches 16

A file a federation goes to ``--cache``: each client's gradients by batch, float32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from atlas_flwr.clustering import project
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
from atlas_flwr.train.step import batch_loss
from atlas_flwr.train.weights import ModelFiles


def batch_gradients(model, batches, name) -> Iterator[dict[str, torch.Tensor]]:
    model.eval()
    for batch in batches:
        model.zero_grad()
        batch_loss(model, batch).backward()
        yield {
            name(key): parameter.grad.clone()
            for key, parameter in model.named_parameters()
            if "lora_B" in key and parameter.grad is not None
        }
    model.zero_grad()


def compute(args, seed: int, path: Path) -> None:
    config = load_config({"model": args.model, "seed": seed, "tasks": args.tasks})
    files = ModelFiles.of(config)
    outline, tokenizer = files.outline(), tokenizer_of(files.source)
    shapes = outline.shapes(config.target_list)
    trunk = PLAN.trunk_range(outline.num_layers)
    state = initial_state(
        shapes, rank=FINGERPRINT_RANK, alpha=config.lora_alpha, seed=seed
    )
    tasks = [load_task(name) for name in config.task_list]
    make = CausalCollator if files.source.kind == "causal" else ClassifierCollator
    found: dict[str, list] = {}
    with adapted_whole(files.whole(), state, config.lora_alpha) as adapted:
        for client in range(args.clients):
            shard = make_shard(
                client,
                args.clients,
                tasks,
                train_examples=config.train_examples,
                test_examples=8,
                seed=seed,
            )
            batches = sample_batches(
                shard.train,
                make(tokenizer, shard.task, config.max_length),
                batch_size=config.batch_size,
                steps=args.batches,
                seed=derive_seed(seed, "fingerprint", client),
            )
            for grads in batch_gradients(
                adapted.model, batches, adapted.parameter_name
            ):
                for key, value in grads.items():
                    block = outline.block_of(key)
                    array = value.numpy().reshape(-1)
                    if block is not None and block in trunk:
                        squared = float((array.astype(np.float64) ** 2).sum())
                        sketch = project({key: value}, 64, seed)
                        array = np.append(sketch, squared).astype(np.float32)
                        key = f"trunk:{key}"
                    found.setdefault(key, []).append(array)
    shape = (args.clients, args.batches, -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {key: np.stack(v).reshape(shape) for key, v in found.items()}
    np.savez(path, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--seeds", default="0-9")
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tasks", default="questions,spam,movies,news")
    parser.add_argument("--cache", type=Path, default=Path("/work/scratch/fpcache"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    first, _, last = args.seeds.partition("-")
    for seed in range(int(first), int(last or first) + 1):
        tasks = args.tasks.replace(",", "+")
        path = (
            args.cache
            / f"{args.model}-{args.clients}-{tasks}-{args.batches}-{seed}.npz"
        )
        if not path.exists():
            start = time.monotonic()
            compute(args, seed, path)
            print(path.name, f"{time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
