# SPDX-License-Identifier: Apache-2.0
"""What a curious server reads of clients' texts, from the hidden states at the cut.

Run from the top of the repository::

    python benchmarks/leakage.py

The server of a u-shaped split of SmolLM2, as the library makes it: what a head of 1 or
2 blocks sends for each position of a text, in float32. The client's adapters are those
that it began with, so that its head is the public one. Texts are those of the demo's
tasks, without prompt and label; for each task the reader is fitted on texts of the
other tasks.

*Linear*: a ridge regression from hidden states to token embeddings; the nearest
embedding is the guess. *Tried*: from left to right, what was read so far is run through
the head; where that does not give what was received, the reader's 256 best guesses of
the position are run, and the nearest is kept. A text's first token sees none but
itself: there the whole vocabulary is run, once. Linear numbers are without that token.
Ends with a Markdown table.

``--fisher 1 2 4 8`` measures the Fisher metric of heads of so many blocks instead, by
which some choose cuts (see ``atlas_flwr/privacy/sensitivity.py``).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from atlas_flwr.data import load_task, make_shard, resolve_model, tokenizer_of
from atlas_flwr.privacy.sensitivity import fisher_metric
from atlas_flwr.split import SplitPlan, partition

TASKS = ("questions", "spam", "movies", "news")
HEADS, GUESSES, LENGTH = (1, 2), 256, 48
DRAWS = 4  # of random signs, for each text's Fisher metric
RIDGE = 1e-3  # of a position's squared norm, which standardising makes the width
SAME = 1e-3  # relative distance below which a guess is what was sent


def texts(task: str, tokenizer: Any, count: int, seed: int) -> list[Tensor]:
    """Return token ids of texts of a task, two tokens or more each."""
    shard = make_shard(0, 1, [load_task(task)], test_examples=count, seed=seed)
    found = tokenizer(
        [example.text for example in shard.test],
        add_special_tokens=False,
        truncation=True,
        max_length=LENGTH,
    )["input_ids"]
    return [torch.tensor(ids) for ids in found if len(ids) > 1]


@torch.no_grad()
def sent(head: Any, ids: Tensor) -> Tensor:
    """Return what crosses the cut for a text, shape (T, D)."""
    hidden: Tensor = head(input_ids=ids[None], use_cache=False).last_hidden_state[0]
    return hidden


class Reader:
    """A ridge regression from hidden states to token embeddings.

    Parameters
    ----------
    hidden, wanted : Tensor
        Shapes (positions, D): hidden states of other texts and their embeddings.
    table : Tensor
        The public embeddings, shape (V, D).
    """

    def __init__(self, hidden: Tensor, wanted: Tensor, table: Tensor) -> None:
        self.mean, self.spread = hidden.mean(0), hidden.std(0)
        x = self._standard(hidden).double()
        gram = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1])
        self.weight = torch.linalg.solve(gram, x.T @ (wanted - wanted.mean(0)).double())
        self.middle = wanted.mean(0)
        self.table, self.sizes = table, table.square().sum(1) / 2

    def guesses(self, hidden: Tensor, count: int) -> Tensor:
        """Return token ids of the nearest embeddings, the best first."""
        found = (self._standard(hidden).double() @ self.weight).float() + self.middle
        return (found @ self.table.T - self.sizes).topk(count).indices

    def _standard(self, hidden: Tensor) -> Tensor:
        return (hidden - self.mean) / self.spread


@torch.no_grad()
def first_tokens(head: Any, table: Tensor) -> Tensor:
    """Return what crosses for each token of the vocabulary where it begins a text."""
    rows = torch.arange(len(table))[:, None].split(1024)
    parts = [head(input_ids=r, use_cache=False).last_hidden_state[:, 0] for r in rows]
    return torch.cat(parts)


@torch.no_grad()
def tried(head: Any, received: Tensor, guesses: Tensor, firsts: Tensor) -> Tensor:
    """Run guesses through the head; return those nearest to what was received."""
    read = guesses[:, 0].clone()
    read[0] = _distance(firsts, received[0]).argmin()
    done = 1  # places that were decided
    while True:
        off = _distance(sent(head, read), received)
        wrong = (off[done:] >= SAME).nonzero()
        if not len(wrong):
            return read
        place = done + int(wrong[0])
        cache = head(input_ids=read[None, :place], use_cache=True).past_key_values
        cache.batch_repeat_interleave(guesses.shape[1])
        out = head(input_ids=guesses[place][:, None], past_key_values=cache)
        far = _distance(out.last_hidden_state[:, 0], received[place])
        read[place] = guesses[place][far.argmin()]
        done = place + 1


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).norm(dim=-1) / wanted.norm(dim=-1)


def measured(
    head: Any, given: argparse.Namespace, tokenizer: Any
) -> Iterator[list[Any]]:
    """Yield for each task: its name, the shares of tokens read, and whole texts."""
    table = head.get_input_embeddings().weight.detach()
    firsts = first_tokens(head, table)
    known = {t: texts(t, tokenizer, given.fit, given.seed + 1) for t in TASKS}
    crossed = {t: [sent(head, ids) for ids in found] for t, found in known.items()}
    for task in TASKS:
        others = [t for t in TASKS if t != task]
        hidden = torch.cat([h[1:] for t in others for h in crossed[t]])
        wanted = table[torch.cat([ids[1:] for t in others for ids in known[t]])]
        reader = Reader(hidden, wanted, table)
        linear, both, whole = [], [], []
        for ids in texts(task, tokenizer, given.texts, given.seed):
            received = sent(head, ids)
            guesses = reader.guesses(received, GUESSES)
            linear += (guesses[1:, 0] == ids[1:]).tolist()
            read = tried(head, received, guesses, firsts)
            both += (read == ids).tolist()
            whole.append(bool((read == ids).all()))
        yield [
            task,
            statistics.fmean(linear),
            statistics.fmean(both),
            sum(whole),
            len(whole),
        ]


def cells(found: Sequence[Any]) -> str:
    """Set a task's numbers in cells."""
    task, linear, both, whole, count = found
    return f"{task} | {100 * linear:.1f} | {100 * both:.1f} | {whole} of {count}"


def fisher(source: str, given: argparse.Namespace, tokenizer: Any) -> None:
    """Print the mean over each task's texts, by depth of head."""
    print(f"| head, blocks | {' | '.join(TASKS)} |")
    print("| --- " * (1 + len(TASKS)) + "|")
    told = {t: texts(t, tokenizer, given.texts, given.seed) for t in TASKS}
    for blocks in given.fisher:
        head = partition(source, SplitPlan(blocks, 1)).head.eval().requires_grad_(False)
        drawn = torch.Generator().manual_seed(given.seed)
        means = [
            statistics.fmean(
                fisher_metric(head, ids, draws=DRAWS, generator=drawn)
                for ids in told[task]
            )
            for task in TASKS
        ]
        cells = " | ".join(f"{value:,.0f}" for value in means)
        print(f"| {blocks} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--texts", type=int, default=16, help="read, of each task")
    parser.add_argument(
        "--fit", type=int, default=233, help="known, of each other task"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--fisher", type=int, nargs="+", metavar="BLOCKS", help="measure it instead"
    )
    given = parser.parse_args()
    began = time.monotonic()
    source = resolve_model(given.model)
    tokenizer = tokenizer_of(source)
    if given.fisher:
        fisher(source.path, given, tokenizer)
        return
    lines = []
    for blocks in HEADS:
        head = partition(source.path, SplitPlan(blocks, 1)).head.eval()
        lines += [
            f"| {blocks} | {cells(row)} |" for row in measured(head, given, tokenizer)
        ]
    print("| head, blocks | task | linear, % of tokens | 256 tried, % | whole texts |")
    print("| --- " * 5 + "|")
    print("\n".join(lines))
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
