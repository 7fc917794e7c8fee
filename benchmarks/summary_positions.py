# SPDX-License-Identifier: Apache-2.0
"""What a crossing of summary positions costs in accuracy and saves in bytes.

Run from the top of the repository, on a GPU if there is one::

    python benchmarks/summary_positions.py --seeds 0 1 2

One split model, LoRA of rank 8 on all linear layers of both sides, is trained on two
tasks of short texts and one of long ones together (others by ``--rows questions=24``);
S summary positions cross and the constant first one, or the whole text (0), which is
measured at the last head alone, since no cut changes what it learns. A line of
JSON for each run goes to ``--out``, and those that are there are not run again; then a
Markdown table is printed.
``--write-data FILE`` writes the examples, for a machine without their packages, which
reads them with ``--data FILE``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROWS = {"questions": 16, "movies": 16, "newsgroups": 8}  # of a step
LENGTHS = {"questions": 48, "movies": 64, "newsgroups": 300}
TRAIN, TEST = 2_000, 300
RANK, ALPHA, RATE = 8, 16.0, 2e-3
HEADS, POSITIONS = (2, 4, 6, 8), (0, 1, 2, 4, 8, 16)


def examples(
    data: str, names: Iterable[str]
) -> dict[str, dict[str, list[tuple[str, int]]]]:
    if data:
        return json.loads(Path(data).read_text())
    from atlas_flwr.data import load_task, make_shard

    out = {}
    for name in names:
        limits = {"train_examples": TRAIN, "test_examples": TEST}
        shard = make_shard(0, 1, [load_task(name)], seed=0, **limits)
        sides = {"train": shard.train, "test": shard.test}
        out[name] = {k: [(e.text, e.label) for e in v] for k, v in sides.items()}
    return out


def run(job: tuple[int, int, int], given: dict[str, Any]) -> dict[str, Any]:
    """Train and test one model: head, positions (0: the whole text), seed."""
    import torch
    from transformers import AutoTokenizer

    from atlas_flwr.data import CausalCollator, NextTokenCollator, load_task
    from atlas_flwr.data.tasks import Example
    from atlas_flwr.lora import Scaling, attach, linear_names
    from atlas_flwr.split import SplitModel, SplitPlan, attach_summary, partition
    from atlas_flwr.train.evaluation import evaluate
    from atlas_flwr.train.step import batch_loss
    from atlas_flwr.trunk import LocalTrunk

    class TimedTrunk(LocalTrunk):
        seconds = 0.0

        def forward(self, call: Any) -> Any:
            began = now(device)
            answer = super().forward(call)
            self.seconds += now(device) - began
            return answer

        def backward(self, step: int, grad: Any) -> Any:
            began = now(device)
            answer = super().backward(step, grad)
            self.seconds += now(device) - began
            return answer

    head, positions, seed = job
    torch.manual_seed(seed)
    torch.set_num_threads(given["threads"])
    torch.backends.cuda.matmul.allow_tf32 = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    parts = partition(
        given["model"],
        SplitPlan(head, 1),
        device=device,
        dtype=getattr(torch, given["dtype"]),
    )
    sides = [parts.head, parts.trunk, parts.tail]
    for side in sides:
        attach(side, dict.fromkeys(linear_names(side), RANK), Scaling(ALPHA))
    trunk = TimedTrunk(parts.trunk)
    model = SplitModel(parts.head, parts.tail, trunk).eval()
    table = model.get_input_embeddings().weight
    drawn = torch.randint(len(table), (positions + 1,))
    start = table[drawn].detach().float() if positions else None
    found = {
        name: {k: [Example(t, c) for t, c in v] for k, v in sets.items()}
        for name, sets in given["data"].items()
    }
    with attach_summary(model, start) as summary:
        learned = [summary.embeddings] if summary else []
        weights = [p for s in sides for p in s.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW([*weights, *learned], lr=RATE, weight_decay=0.0)
        collates: dict[str, Any] = {}
        for name in given["rows"]:
            collate: Any = CausalCollator(tokenizer, load_task(name), LENGTHS[name])
            collates[name] = NextTokenCollator(collate) if positions else collate
        began, crossed, texts = now(device), 0, 0
        for step in range(given["steps"]):
            for group in optimizer.param_groups:  # a short way up, a long way down
                part = min((step + 1) / 20, 1 - step / given["steps"])
                group["lr"] = RATE * max(part, 0.02)
            optimizer.zero_grad()
            for name, count in given["rows"].items():
                rows = torch.randperm(len(found[name]["train"]))[:count].tolist()
                batch = collates[name]([found[name]["train"][i] for i in rows])
                batch_loss(model, batch).backward()
                width = positions + 1 if positions else batch.input_ids.shape[1]
                crossed, texts = crossed + count * width, texts + count
            optimizer.step()
        seconds, of_trunk = now(device) - began, trunk.seconds
        accuracy = {
            name: evaluate(
                model, prompts(sets["test"], collates[name]), collates[name].label_ids
            ).accuracy
            for name, sets in found.items()
        }
    return {
        "head": head,
        "positions": positions,
        "seed": seed,
        "accuracy": accuracy,
        "bytes_up_a_text": 2 * 4 * table.shape[1] * crossed / texts,
        "seconds_a_step": seconds / given["steps"],
        "trunk_seconds_a_step": of_trunk / given["steps"],
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def now(device: str) -> float:
    """Seconds of a clock, once the device has done what it was given."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def prompts(tests: Any, collate: Any) -> Iterator[Any]:
    ordered = sorted(tests, key=lambda example: len(example.text))
    for start in range(0, len(ordered), 50):
        yield collate(ordered[start : start + 50], prompt=True)


def table(results: list[dict[str, Any]]) -> str:
    names = list(results[0]["accuracy"])
    lines = [f"| head | positions | {' | '.join(names)} | mean | KB up a text |"]
    lines.append("|" + " --- |" * (len(names) + 4))
    for key in sorted(
        {(r["positions"] > 0, r["head"], r["positions"]) for r in results}
    ):
        own = [r for r in results if (r["head"], r["positions"]) == key[1:]]
        cells = [spread([r["accuracy"][name] for r in own]) for name in names]
        cells.append(spread([statistics.fmean(r["accuracy"].values()) for r in own]))
        kilobytes = statistics.fmean(r["bytes_up_a_text"] for r in own) / 1e3
        shown = key[2] or "all"
        row = f"| {key[1]} | {shown} | {' | '.join(cells)} | {kilobytes:.0f} |"
        lines.append(f"{row} <!-- {len(own)} seeds -->")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    middle = 100 * statistics.fmean(values)
    return f"{middle:.1f} ± {100 * statistics.pstdev(values):.1f}"


def rows_of_a_task(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    if name not in LENGTHS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(LENGTHS)}")
    return name, int(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="")
    parser.add_argument("--data", default="")
    parser.add_argument("--write-data", default="")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--heads", nargs="+", type=int, default=list(HEADS))
    parser.add_argument("--positions", nargs="+", type=int, default=list(POSITIONS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--rows", nargs="+", type=rows_of_a_task, default=list(ROWS.items())
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", default="runs/summary-positions.jsonl", type=Path)
    given = parser.parse_args()
    data = examples(given.data, dict(given.rows))
    if given.write_data:
        Path(given.write_data).write_text(json.dumps(data))
        return
    path = given.model
    if not path:
        from atlas_flwr.data import resolve_model

        path = resolve_model("smollm2").path
    given.out.parent.mkdir(parents=True, exist_ok=True)
    lines = given.out.read_text().splitlines() if given.out.exists() else []
    results = [json.loads(line) for line in lines]
    done = {(r["head"], r["positions"], r["seed"]) for r in results}
    jobs = [
        (head, count, seed)
        for seed in given.seeds
        for head in given.heads
        for count in given.positions
        if (head, count, seed) not in done and (count or head == given.heads[-1])
    ]
    settings = {
        "model": path,
        "data": data,
        "steps": given.steps,
        "rows": dict(given.rows),
        "threads": given.threads,
        "dtype": given.dtype,
    }
    context = multiprocessing.get_context("spawn")
    with context.Pool(given.jobs, maxtasksperchild=8) as pool:
        waiting = [pool.apply_async(run, (job, settings)) for job in jobs]
        for job, result in zip(jobs, waiting, strict=True):
            results.append(result.get())
            with given.out.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
            print(job, results[-1]["accuracy"], flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
