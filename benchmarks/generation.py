# SPDX-License-Identifier: Apache-2.0
"""What a token costs: the unsplit model, the split one with caches, and without.

Run from the top of the repository::

    python benchmarks/generation.py

SmolLM2 in float32, cut 2/1, its trunk behind frames in this process, on one thread.
Each way writes the same tokens, greedily, after the same prompts. Bytes are all that
crossed, headers and prompt among them, divided by the tokens written. The last way
sends the whole text for every token (``use_cache=False``); it runs once, the others
three times, of which the medians are told. Drafts of 8 tokens are looked up in the text
itself (``prompt_lookup_num_tokens=8``): the text that repeats itself is the best case
for them, the other the usual one. On a GPU with ``--device cuda``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from atlas_flwr.config import load_config
from atlas_flwr.data import tokenizer_of
from atlas_flwr.split import SplitModel, SplitPlan
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import (
    FramedTrunk,
    SessionSpec,
    connect,
    serve_local,
)

PLAN = SplitPlan(2, 1)
REFRAIN = (
    "The sea was calm that morning, and from the top of the hill one could see the "
    "fishing boats come home, one after the other, with gulls above them. Nobody in "
    "the village remembered a summer as long as this, nor so many strangers on the "
    "quay. "
)
TEXT = REFRAIN + (
    "Old Anselm mended his nets in the shade, and told whoever would listen about the "
    "year when the harbour froze over and a bear walked across it from the islands. "
)
SLOW, DRAFTS = "split, whole texts", "split, caches, drafts"
WAYS = ("unsplit", "split, caches", SLOW)
CASES: dict[str, tuple[int, int, str, tuple[str, ...]]] = {
    "1 text": (1, 1, TEXT, (*WAYS, DRAFTS)),
    "4 ragged texts": (4, 1, TEXT, WAYS),
    "1 text, 4 beams": (1, 4, TEXT, WAYS[:2]),
    "1 text that repeats itself": (1, 1, REFRAIN, (*WAYS[:2], DRAFTS)),
}


@dataclass
class Seen:
    """What one way did in one case."""

    seconds: list[float] = field(default_factory=list)
    up: float = 0.0
    down: float = 0.0
    passes: float = 0.0
    texts: Any = None


def prompts(
    tokenizer: Any, text: str, rows: int, longest: int
) -> dict[str, torch.Tensor]:
    """Cut texts of lengths from half of the longest up, padded on the left."""
    ids = tokenizer(text * (2 + longest // 40), return_tensors="pt").input_ids
    lengths = [longest - (longest // 2) * k // max(rows - 1, 1) for k in range(rows)]
    mask = torch.stack(
        [(torch.arange(longest) >= longest - length).long() for length in lengths]
    )
    shifted = torch.stack([ids[0, k : k + longest] for k in range(rows)])
    return {"input_ids": shifted * mask, "attention_mask": mask}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the longest")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    files = ModelFiles.of(load_config({"model": given.model}), given.device)
    tokenizer, whole = tokenizer_of(files.source), files.whole()
    parts = files.parts(PLAN)
    engine = files.trunk(PLAN).engine()
    with serve_local("benchmark", engine) as address:
        token = engine.open(SessionSpec(PLAN))
        trunk = connect(address, token=token, spares_padding=True)
    assert isinstance(trunk, FramedTrunk)
    split = SplitModel(parts.head, parts.tail, trunk).eval()
    print(f"{given.model}, {given.device}, prompts of up to {given.prompt} tokens,")
    print(f"{given.tokens} new ones\n")
    print("| | | tokens/s | round trips a token | KB a token up | down |")
    print("|---|---|---:|---:|---:|---:|")
    for case, (rows, beams, text, ways) in CASES.items():
        inputs = prompts(tokenizer, text, rows, given.prompt)
        inputs = {k: v.to(files.device) for k, v in inputs.items()}
        settings = {
            **inputs,
            "num_beams": beams,
            "do_sample": False,
            "max_new_tokens": given.tokens,
            "min_new_tokens": given.tokens,
            "pad_token_id": 0,
        }
        seen = {way: Seen() for way in ways}
        for turn in range(given.repeats):
            for way, found in seen.items():
                if way == SLOW and turn:
                    continue
                model = whole if way == "unsplit" else split
                more = {"prompt_lookup_num_tokens": 8} if way == DRAFTS else {}
                passes = engine.stats().base_passes
                up, down = trunk.meter.total_up, trunk.meter.total_down
                begun = time.perf_counter()
                found.texts = model.generate(**settings, **more, use_cache=way != SLOW)
                found.seconds.append(time.perf_counter() - begun)
                written = rows * given.tokens
                found.up = (trunk.meter.total_up - up) / written / 1e3
                found.down = (trunk.meter.total_down - down) / written / 1e3
                found.passes = (engine.stats().base_passes - passes) / given.tokens
        for way, found in seen.items():
            assert torch.equal(found.texts, seen["unsplit"].texts), way
            speed = rows * given.tokens / statistics.median(found.seconds)
            crossed = f"{found.passes:.2f} | {found.up:.2f} | {found.down:.2f}"
            crossed = crossed if found.up else "– | – | –"
            print(f"| {case} | {way} | {speed:.1f} | {crossed} |", flush=True)


if __name__ == "__main__":
    main()
