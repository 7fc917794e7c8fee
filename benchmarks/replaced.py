# SPDX-License-Identifier: Apache-2.0
"""What share of a text's tokens a defence leaves, and how far it tells tokens apart.

Run from the top of the repository::

    python benchmarks/replaced.py --defences tokens:11 tokens:12 santext:14 santext:16

All by the defences' own probabilities, nothing is drawn. Prints a Markdown table, a row
a defence: the mean over the tokens of 64 texts of each task of how probably one is
answered by itself; and over 500 pairs of tokens drawn from these texts how much more
probable the one's most telling answer is than by the other, as a logarithm: of
``tokens`` epsilon at most, of ``santext`` epsilon times the pair's distance at most.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from atlas_flwr.config import load_config
from atlas_flwr.data import load_task, make_shard, tokenizer_of
from atlas_flwr.privacy import parse_defence
from atlas_flwr.remedies.wire_defence import vocabulary_of
from atlas_flwr.train.weights import ModelFiles

TEXTS, PAIRS = 64, 500


def counted(files: ModelFiles, tasks: list[str]) -> Counter[int]:
    """Count the tokens of some texts."""
    tokenizer: Any = tokenizer_of(files.source)
    found: Counter[int] = Counter()
    for name in tasks:
        shard = make_shard(0, 1, [load_task(name)], train_examples=TEXTS, seed=0)
        for example in shard.train:
            ids = tokenizer(example.text, add_special_tokens=False)["input_ids"]
            found.update(ids)
    return found


def row(defence: str, files: ModelFiles, seen: Counter[int]) -> str:
    found, words, among = parse_defence(defence), vocabulary_of(files), sorted(seen)
    drawn = torch.Generator().manual_seed(0)
    drawings = torch.randint(len(among), (PAIRS, 2), generator=drawn).tolist()
    pairs = [(among[i], among[j]) for i, j in drawings if i != j]
    found.token_odds(among[0], torch.tensor(among), words)  # faster together: it keeps

    def odds(read: int, tokens: tuple[int, ...]) -> Tensor:
        return found.token_odds(read, torch.tensor(tokens), words)

    stays = sum(n * float(odds(token, (token,)).exp()) for token, n in seen.items())
    # What tells two apart most is an answer by one of both.
    told = [
        max(float(odds(read, pair).diff().abs()) for read in pair) for pair in pairs
    ]
    return (
        f"| `{defence}` | {100 * stays / seen.total():.0f} "
        f"| {sum(told) / len(told):.1f} | {max(told):.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tasks", nargs="+", default=["questions", "spam"])
    parser.add_argument("--defences", nargs="+", default=["tokens:12", "santext:16"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config({"model": given.model, "tasks": ",".join(given.tasks)})
    files = ModelFiles.of(config, "cpu")
    seen = counted(files, given.tasks)
    print("| defence | stays, % | told apart by, mean | most |")
    print("| --- " * 4 + "|", flush=True)
    for defence in given.defences:
        print(row(defence, files, seen), flush=True)


if __name__ == "__main__":
    main()
