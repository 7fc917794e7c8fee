# SPDX-License-Identifier: Apache-2.0
"""Peak memory of clients and trunks, measured and predicted.

Run from the top of the repository::

    python benchmarks/memory_model.py --points all

Each point is a fresh process: it imports everything, trains a tiny model of the same
family, so that code and libraries are resident, notes its resident bytes, loads its
parts, looks at every weight once, and trains 3 steps. Its peak is the kernel's
high-water mark since then, less the bytes before. A client's trunk is a stand-in that
answers with its question; a trunk's clients are random numbers. Prints a Markdown
table, and below it the distribution of the errors.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import cycle

import torch

from atlas_flwr.budget import (
    Architecture,
    Repeated,
    TrunkSession,
    client_memory,
    return_freed_memory,
    trunk_memory,
)
from atlas_flwr.data import Batch, resolve_model
from atlas_flwr.lora import AdapterState, Scaling
from atlas_flwr.split import SplitPlan
from atlas_flwr.train.echo import Echo
from atlas_flwr.train.initial import initial_state
from atlas_flwr.train.loop import train
from atlas_flwr.train.memory import PeakMeter
from atlas_flwr.train.model import adapted_split
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import Limits, SessionSpec, TrunkEngine
from atlas_flwr.trunk.hosts.checking import CheckedTrunk
from atlas_flwr.trunk.hosts.own_trunk import OwnTrunk
from atlas_flwr.types import OptimizerSpec, Side, TrunkCall

MIB = 1 << 20
STEPS = 3
MIXED = (2, 16, 4)
TARGETS = ("all-linear",)
WARM_UP = {"smollm2": "tiny", "minilm": "tiny-bert"}


@dataclass(frozen=True)
class Point:
    """One measurement; ``sessions`` is 0 for a client.

    ``labels`` are those of an example on average: every other row has a third of what
    the next one has, as answers differ in length.
    """

    model: str
    head: int
    tail: int
    ranks: str
    batch: int
    length: int
    sessions: int = 0
    in_flight: int = 1
    recompute: bool = False
    dtype: str = "float32"
    keep_freed: bool = False
    labels: int = 1
    checked: bool = False

    @property
    def files(self) -> ModelFiles:
        source = resolve_model(self.model, progress=False)
        classes = 0 if source.kind == "causal" else 6
        return ModelFiles(source, classes, getattr(torch, self.dtype), "cpu", 0)

    def by_layer(self, names: Iterable[str]) -> dict[str, int]:
        """Return the rank of each of a block's layers."""
        ranks = MIXED if self.ranks == "mixed" else (int(self.ranks),)
        return dict(zip(names, cycle(ranks), strict=False))


# --- measuring ---------------------------------------------------------------------


def batches(files: ModelFiles, point: Point) -> Iterator[Batch]:
    """Yield random tokens at full length."""
    vocabulary = files.outline().model.config.vocab_size
    causal = files.source.kind == "causal"
    shape = point.batch, point.length
    short = -(-point.labels // 2)
    counts = [short, 2 * point.labels - short] * (point.batch // 2)
    for step in range(STEPS):
        torch.manual_seed(step)
        ids = torch.randint(3, vocabulary, shape)
        mask = torch.ones_like(ids)
        mask[0, :4] = 0  # as good as every batch has some padding, which takes a mask
        labels = torch.zeros(point.batch, dtype=torch.long)
        if causal:
            labels = torch.full_like(ids, -100)
            for row, count in enumerate(counts):
                labels[row, -count:] = ids[row, -count:]
        yield Batch(
            input_ids=ids,
            attention_mask=mask,
            labels=labels,
            targets=torch.zeros(point.batch, dtype=torch.long),
            position_ids=(mask.cumsum(1) - 1).clamp(min=0) if causal else None,
            token_type_ids=None if causal else torch.zeros_like(ids),
            logits_to_keep=max(counts) + 1 if causal else 0,
        )


def adapters(
    files: ModelFiles, point: Point, inside: bool
) -> tuple[AdapterState, SplitPlan]:
    """Make the adapters of the client's side, or of the trunk's."""
    outline, plan = files.outline(), SplitPlan(point.head, point.tail)
    middle = plan.trunk_range(outline.num_layers)
    shapes = outline.shapes(TARGETS)
    first = f"{outline.blocks}.0."
    names = [n.removeprefix(first) for n in shapes if n.startswith(first)]
    ranks, factors = point.by_layer(names), {}
    for name, shape in shapes.items():
        block = outline.block_of(name)
        if (block in middle) == inside:
            rank = ranks[name.removeprefix(f"{outline.blocks}.{block}.")]
            scale = Scaling(16.0)
            made = initial_state({name: shape}, rank=rank, scaling=scale, seed=0)
            factors.update(made.factors)
    return AdapterState(factors, {} if inside else files.dense()), plan


def look_at(module: torch.nn.Module) -> None:
    """Read every weight, as a client has after enough steps."""
    for parameter in module.parameters():
        parameter.detach().flatten().max()


def client_peak(point: Point) -> int:
    files = point.files
    state, plan = adapters(files, point, inside=False)
    made = list(batches(files, point))
    far, _ = adapters(files, point, inside=True)
    spec, outline = SessionSpec(plan, far), files.outline()
    own = OwnTrunk(files.trunk, spec, outline.num_layers, outline.block_of)
    checked = CheckedTrunk(Echo(), own) if point.checked else None
    with PeakMeter() as meter:
        parts = files.parts(plan)
        with adapted_split(
            parts.head, parts.tail, checked or Echo(), state, Scaling(16.0)
        ) as adapted:
            look_at(adapted.model)
            train(adapted.model, made, OptimizerSpec())
        if checked:
            list(checked.departures())  # an echo is off, which is not the question
            checked.computed()
    return meter.peak_bytes


def trunk_peak(point: Point) -> int:
    files = point.files
    state, plan = adapters(files, point, inside=True)
    width = files.outline().model.config.hidden_size
    shape = point.batch, point.length, width
    mask = torch.ones(shape[:2], dtype=torch.long)
    mask[0, :4] = 0
    with PeakMeter() as meter:
        trunk = files.parts(SplitPlan(1, 1), sides=(Side.TRUNK,)).trunk
        look_at(trunk)
        engine = TrunkEngine(trunk, limits=Limits(), recompute=point.recompute)
        tokens = [
            engine.open(SessionSpec(plan, copy.deepcopy(state)))
            for _ in range(point.sessions)
        ]
        for step in range(STEPS):
            for first in range(0, len(tokens), point.in_flight):
                open_ = tokens[first : first + point.in_flight]
                for token in open_:
                    hidden = torch.randn(shape, dtype=files.dtype)
                    engine.forward(token, TrunkCall(hidden, mask, None, step))
                for token in open_:
                    engine.backward(token, step, torch.randn(shape, dtype=files.dtype))
    return meter.peak_bytes


def measure(point: Point) -> int:
    """Measure a point in this process, which should be fresh."""
    torch.set_num_threads(1)
    if not point.keep_freed:
        return_freed_memory()
    peak = trunk_peak if point.sessions else client_peak
    peak(replace(point, model=WARM_UP[point.model], head=1, batch=2, length=16))
    return peak(point)


def measured(point: Point) -> int:
    """Measure a point in a fresh process."""
    command = [sys.executable, __file__, "--measure", json.dumps(asdict(point))]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(found.stdout.split()[-1])


# --- predicting --------------------------------------------------------------------


@cache
def architecture_of(files: ModelFiles) -> Architecture:
    return files.outline().architecture(TARGETS, files.dtype)


def predicted(point: Point) -> int:
    files = point.files
    architecture = architecture_of(files)
    ranks = point.by_layer(architecture.adapted)
    shape = {"batch": point.batch, "length": point.length}
    shape["dtype_bytes"] = files.dtype.itemsize
    if not point.sessions:
        found = client_memory(
            architecture,
            head=point.head,
            tail=point.tail,
            ranks=ranks,
            logits_to_keep=point.labels + 1,
            repeated=Repeated(STEPS, ranks) if point.checked else None,
            **shape,
        )
        return found.total - found.process  # points start with their small objects
    session = TrunkSession(point.head, point.tail, ranks)
    return trunk_memory(
        architecture,
        sessions=[session] * point.sessions,
        in_flight=point.in_flight,
        recompute=point.recompute,
        **shape,
    ).total


# --- the points --------------------------------------------------------------------


def client_points() -> Iterator[Point]:
    cuts = {"smollm2": (1, 2, 4), "minilm": (1, 2, 3)}
    steps = [(2, 32), (2, 128), (8, 32), (8, 64), (8, 128), (16, 64), (16, 128)]
    for model, heads in cuts.items():
        turns = cycle(("4", "16", "mixed"))
        for head in heads:
            for batch, length in steps:
                yield Point(model, head, 1, next(turns), batch, length)


def trunk_points() -> Iterator[Point]:
    for model, deep in (("smollm2", 4), ("minilm", 2)):
        yield Point(model, 1, 1, "4", 2, 64, sessions=1)
        yield Point(model, 1, 1, "16", 8, 64, sessions=1)
        yield Point(model, deep, 1, "mixed", 8, 64, sessions=1)
        yield Point(model, 1, 1, "16", 8, 64, sessions=4)
        yield Point(model, 1, 1, "mixed", 4, 64, sessions=4, in_flight=2)
        yield Point(model, 1, 1, "4", 8, 64, sessions=2, recompute=True)
        yield Point(model, deep, 1, "16", 4, 128, sessions=4, in_flight=4)
        yield Point(model, 1, 1, "16", 8, 128, sessions=4, in_flight=4, recompute=True)


def written_points() -> Iterator[Point]:
    """Clients whose answers are of several tokens."""
    turns = cycle(("4", "16", "mixed"))
    for head, batch, length, labels in (
        (1, 8, 32, 4),
        (1, 8, 48, 16),
        (1, 2, 128, 64),
        (2, 8, 64, 32),
        (2, 4, 128, 64),
        (4, 8, 128, 16),
    ):
        ranks = next(turns)
        yield Point("smollm2", head, 1, ranks, batch, length, labels=labels)


def checked_points() -> Iterator[Point]:
    """Clients that repeat their round on the trunk."""
    for model in ("smollm2", "minilm"):
        for ranks, batch, length in (("4", 2, 32), ("16", 8, 64), ("mixed", 16, 128)):
            yield Point(model, 1, 1, ranks, batch, length, checked=True)


POINTS = {
    "client": client_points,
    "written": written_points,
    "checked": checked_points,
    "trunk": trunk_points,
}


# --- telling -----------------------------------------------------------------------


def tell(kind: str, keep_freed: bool = False) -> None:
    """Measure the points of a kind; print their table and its summary."""
    more = {"trunk": "sessions, in flight, recompute | ", "written": "labels | "}
    own = more.get(kind, "")
    print(
        f"| model | cut | ranks | batch | length | {own}measured MiB | predicted | % |"
    )
    print("|" + " --- |" * (9 if own else 8))
    errors = []
    for one in POINTS[kind]():
        point = replace(one, keep_freed=keep_freed)
        real, said = measured(point), predicted(point)
        errors.append(100 * (said / real - 1))
        cells = [
            point.model,
            f"{point.head}/{point.tail}",
            point.ranks,
            point.batch,
            point.length,
        ]
        if kind == "written":
            cells.append(point.labels)
        if kind == "trunk":
            again = "yes" if point.recompute else "no"
            cells.append(f"{point.sessions}, {point.in_flight}, {again}")
        cells += [f"{real / MIB:.1f}", f"{said / MIB:.1f}", f"{errors[-1]:+.1f}"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    sizes = [abs(error) for error in errors]
    print(
        f"\n{kind}: {len(errors)} points; error {min(errors):+.1f} to "
        f"{max(errors):+.1f} %, absolute: median {statistics.median(sizes):.1f} %, "
        f"largest {max(sizes):.1f} %, above 10 %: {sum(s > 10 for s in sizes)}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", choices=[*POINTS, "all"], default="all")
    parser.add_argument(
        "--keep-freed",
        action="store_true",
        help="leave the C library as it is: a client without a memory budget",
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(measure(Point(**json.loads(given.measure))))
        return
    for kind in POINTS if given.points == "all" else [given.points]:
        tell(kind, given.keep_freed)


if __name__ == "__main__":
    main()
