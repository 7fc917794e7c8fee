# SPDX-License-Identifier: Apache-2.0
"""``atlas-flwr generate``: answers of a run's adapters to a file of prompts."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from atlas_flwr.cli.adapters import add_adapters, add_decoding, ready
from atlas_flwr.errors import ConfigError, DataError

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(
        prog="atlas-flwr generate",
        description="Answer the prompts of a file with a run's adapters, through the "
        "split model. Each line of it is a JSON object, with `prompt`, which is put as "
        "it is, or with the fields of a task that the adapters were trained on.",
    )
    add_adapters(parser)
    parser.add_argument("--prompts", metavar="FILE", type=Path, required=True)
    parser.add_argument("--out", metavar="FILE", type=Path, required=True)
    add_decoding(parser, longest=128)
    parser.add_argument("--batch-size", metavar="N", type=int, default=8)
    parser.add_argument(
        "--drafts",
        metavar="N",
        type=int,
        default=0,
        help="tokens guessed from the text itself, for fewer round trips; with "
        "--batch-size 1",
    )
    given = parser.parse_args(arguments)
    if given.drafts and given.batch_size != 1:
        raise ConfigError(
            [f"drafts={given.drafts} with batch-size={given.batch_size}: must be 1"]
        )
    if given.batch_size < 1:
        raise ConfigError([f"batch-size={given.batch_size}: at least 1 prompt at once"])
    if not given.out.parent.is_dir():
        raise DataError(f"no folder {given.out.parent} for {given.out}")

    from atlas_flwr.serving import answered, read_prompts

    found = ready(given)
    rows = read_prompts(given.prompts, found.prompts)
    tokens = [found.prompts.ids(row) for row in rows]
    print(found.title)
    written = 0
    with found.served() as served, given.out.open("w", encoding="utf-8") as out:
        begun = time.perf_counter()
        answers = answered(
            served.model,
            found.prompts.tokenizer,
            tokens,
            found.decoding,
            given.batch_size,
        )
        for row, answer in zip(rows, answers, strict=True):
            line = json.dumps({**row, "answer": answer.text}, ensure_ascii=False)
            out.write(line + "\n")
            written += answer.tokens
        seconds = time.perf_counter() - begun
    print(
        f"{len(rows)} answers in {given.out} · {written} tokens, "
        f"{written / seconds:.1f} a second · bytes a token: "
        f"{served.meter.total_up / written:,.0f} up, "
        f"{served.meter.total_down / written:,.0f} down"
    )
    return 0
