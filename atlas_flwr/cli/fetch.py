# SPDX-License-Identifier: Apache-2.0
"""``atlas-flwr fetch``: download and convert before the run that needs it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from atlas_flwr.config import RunConfig, split_list

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    preset = RunConfig()
    parser = argparse.ArgumentParser(
        prog="atlas-flwr fetch",
        description="Download, convert and check a model and tasks; what is there "
        "already is quick.",
    )
    parser.add_argument(
        "--model", default=preset.model, help="short name, folder or hub"
    )
    parser.add_argument("--tasks", default=preset.tasks, help="comma list")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    given = parser.parse_args(arguments)

    from atlas_flwr.data import cache_folder, load_examples, prepare, tokenizer_of
    from atlas_flwr.data.lengths import lengths_of

    source, tasks = prepare(
        given.model, split_list(given.tasks), progress=not given.quiet
    )
    print(f"model {source.name}: {source.path} ({source.kind})")
    tokenizer = tokenizer_of(source)
    for task in tasks:
        what = f"{len(task.labels)} classes" if task.labels else "text to be written"
        print(f"task {task.name}: {len(load_examples(task)):,} examples, {what}")
        if task.answers:
            print(f"  {lengths_of(tokenizer, task, preset.max_length)}: see max-length")
    print(f"cache: {cache_folder()}")
    return 0
