# SPDX-License-Identifier: Apache-2.0
"""What a client's process takes to read its share of a file of any size.

Run from the top of the repository::

    python benchmarks/large_file.py --mib 256 1024 --formats jsonl csv

Writes a file of questions and answers, of so many MiB, and reads a client's share of it
in a process of its own; prints a Markdown table of the largest resident memory, less
that before, and of the processor's seconds.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

from atlas_flwr.data import load_task, make_shard
from atlas_flwr.train.memory import resident_bytes

MIB = 1 << 20
TASK = "kind: generation\npath: rows\nformat: {}\nprompt: '{{q}}'\n"
TASK += "response: '{{a}}'\n"
FORMATS = ("csv", "json", "jsonl", "tsv")
WORDS = [f"word{n}" for n in range(2000)]


def written(folder: Path, mib: int, form: str) -> Path:
    """Write a file of rows of some 700 characters, and its task."""
    draw, size = random.Random(0), 0
    with (folder / "rows").open("w") as file:
        table = csv.writer(file, csv.excel_tab if form == "tsv" else csv.excel)
        if form in ("csv", "tsv"):
            table.writerow(("q", "a"))
        elif form == "json":
            file.write("[")
        while size < mib * MIB:
            q, a = (" ".join(draw.choices(WORDS, k=k)) for k in (20, 70))
            if form in ("csv", "tsv"):
                size += table.writerow((q, a))
            else:
                ends = ",\n" if form == "json" else "\n"
                size += file.write(json.dumps({"q": q, "a": a}) + ends)
        if form == "json":
            file.write(json.dumps({"q": "the last", "a": "one"}) + "]")
    task = folder / "large.yaml"
    task.write_text(TASK.format(form))
    return task


def measured(task: str) -> None:
    """Print peak MiB, seconds and examples of client 0 of 4."""
    loaded = load_task(task)
    before, begun = resident_bytes(), time.process_time()
    shard = make_shard(0, 4, [loaded])
    seconds = time.process_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print((peak - before) / MIB, seconds, len(shard.train) + len(shard.test))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--formats", nargs="+", default=["jsonl"], choices=FORMATS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        measured(given.one)
        return
    print("| format | file, MiB | memory, MiB | CPU s | examples of client 0 of 4 |")
    print("| --- | --- | --- | --- | --- |")
    for form, mib in product(given.formats, given.mib):
        with tempfile.TemporaryDirectory() as folder:
            task = written(Path(folder), mib, form)
            words = [sys.executable, __file__, "--one", str(task)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
        memory, seconds, examples = done.stdout.split()
        row = f"| {form} | {mib} | {float(memory):.0f} | {float(seconds):.1f}"
        print(f"{row} | {examples} |")


if __name__ == "__main__":
    main()
