# SPDX-License-Identifier: Apache-2.0
"""Batches of one optimiser step that are in flight together, with the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

from torch import nn

from atlas_flwr.errors import AtlasError
from atlas_flwr.train.step import Step, device_of
from atlas_flwr.trunk.hosts.chain import links_of
from atlas_flwr.trunk.turns import Ended, Turns
from atlas_flwr.types import TrunkClient

__all__ = ["Ran", "Runner", "overlapping"]


class Ran(NamedTuple):
    """What a batch came to.

    Attributes
    ----------
    task, penalty : float, optional
        Its loss, where that counts, and what was added to it.
    """

    task: float | None
    penalty: float | None


Runner = Callable[[Callable[[Step], Ran], Sequence[Step]], list[Ran]]


@contextmanager
def overlapping(model: nn.Module, in_flight: int) -> Iterator[Runner]:
    """Yield what runs the batches of an optimiser step.

    While one waits for the trunk, others compute: client, wire and trunk are busy at
    once. Gradients are summed in the batches' order, so that they have the bits of one
    after the other.

    Parameters
    ----------
    model : nn.Module
        What they run through.
    in_flight : int
        Batches at once; 1 runs one after the other in this thread.

    Raises
    ------
    AtlasError
        If the model is on a GPU, whose backward passes have one thread for all: it
        would wait for the trunk, and nothing else could compute.
    """
    if in_flight == 1:
        yield _one_by_one
        return
    device = device_of(model)
    if device.type != "cpu":
        raise AtlasError(
            f"in-flight={in_flight} on {device}: batches are in flight together on a "
            "CPU alone; set in-flight=1, or device='cpu'"
        )
    trunk = getattr(model, "trunk", None)
    links = links_of(trunk) if isinstance(trunk, TrunkClient) else []
    turns = Turns(in_flight)
    for link in links:
        link.away = turns.away
    try:
        with ThreadPoolExecutor(in_flight, thread_name_prefix="batch") as pool:
            yield lambda run, steps: _together(pool, turns, run, steps)
    finally:
        for link in links:
            link.away = nullcontext


def _one_by_one(run: Callable[[Step], Ran], steps: Sequence[Step]) -> list[Ran]:
    return [run(step) for step in steps]


def _together(
    pool: ThreadPoolExecutor,
    turns: Turns,
    run: Callable[[Step], Ran],
    steps: Sequence[Step],
) -> list[Ran]:
    """Run batches in threads; raise what the first met that failed by itself."""

    def own(step: Step) -> Ran:
        with turns.batch(step.index):
            return run(step)

    futures = [pool.submit(own, step) for step in steps]
    for future in futures:
        error = future.exception()
        if error is not None and not isinstance(error, Ended):
            raise error
    return [future.result() for future in futures]
