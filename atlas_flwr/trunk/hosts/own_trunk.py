# SPDX-License-Identifier: Apache-2.0
"""A trunk that a client computes itself, of which it holds one block at a time.

Adapters and their optimiser's moments, which are small, stay; a block's weights are
mapped from the checkpoint when calls go through it, and again when gradients come back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from atlas_flwr.budget.chains import Link
from atlas_flwr.lora import AdapterState
from atlas_flwr.split import SplitPlan
from atlas_flwr.split.weight_loading import Filling
from atlas_flwr.trunk.engine.base import SharedBase
from atlas_flwr.trunk.engine.batching import Batcher
from atlas_flwr.trunk.engine.learner import Learner
from atlas_flwr.trunk.engine.session import Session, SessionSpec
from atlas_flwr.trunk.engine.steps import Pass, StepLog
from atlas_flwr.trunk.engine.work import Backward, Work
from atlas_flwr.trunk.hosts.peer_model import part_of
from atlas_flwr.trunk.source import TrunkSource
from atlas_flwr.types import TrunkCall

__all__ = ["OwnTrunk", "Replayed"]


class Replayed(NamedTuple):
    """What a step comes to.

    Attributes
    ----------
    answer : Tensor
        Hidden states, shape (B, T, D).
    back : Tensor
        d loss / d hidden of the call, of the same shape.
    """

    answer: Tensor
    back: Tensor


@dataclass
class OwnTrunk:
    """A session of one's own, a block after the other.

    Parameters
    ----------
    source : Callable[[SplitPlan], TrunkSource]
        Loads a plan's trunk.
    spec : SessionSpec
        What the server opened the session with.
    num_layers : int
        Blocks of the whole model.
    layer_block : Callable[[str], int | None]
        Block of a layer.
    """

    source: Callable[[SplitPlan], TrunkSource]
    spec: SessionSpec
    num_layers: int
    layer_block: Callable[[str], int | None]
    _learners: dict[int, Learner] = field(default_factory=dict, init=False)
    _bases: dict[int, tuple[Filling, SharedBase]] = field(
        default_factory=dict, init=False
    )

    def answer(self, call: TrunkCall) -> Tensor:
        """Run a call through all blocks, with the adapters of now."""
        (answer,), _ = self._answers([call])
        return answer

    def train(
        self, calls: Sequence[TrunkCall], grads: Sequence[Tensor]
    ) -> list[Replayed]:
        """Run steps at one state of the adapters, which then learn from them.

        Parameters
        ----------
        calls : Sequence[TrunkCall]
            As many as are in an optimiser step, in the order of their numbers. Fewer
            are the last: the adapters stay as they are.
        grads : Sequence[Tensor]
            d loss / d answer of each.
        """
        answers, passes = self._answers(calls)
        for block in reversed(self._blocks):
            with self._held(block) as (base, session):
                works = [
                    Backward(session, made.call, step, made, grad)
                    for made, step, grad in zip(
                        passes.pop(block), _numbers(calls), grads, strict=True
                    )
                ]
                grads = _done(base, works)
        return [Replayed(*pair) for pair in zip(answers, grads, strict=True)]

    def state(self) -> AdapterState:
        """Copy what was trained of the blocks that were computed."""
        states = (learner.state() for learner in self._learners.values())
        return reduce(AdapterState.merged, states, AdapterState())

    @property
    def _blocks(self) -> range:
        return self.spec.plan.trunk_range(self.num_layers)

    def _answers(
        self, calls: Sequence[TrunkCall]
    ) -> tuple[list[Tensor], dict[int, list[Pass]]]:
        """Run calls through all blocks; return the answers, and what each block saw."""
        passes: dict[int, list[Pass]] = {}
        for block in self._blocks:
            with self._held(block) as (base, session), torch.no_grad():
                given = [base.received(call) for call in calls]
                answers = [base.run(session, call) for call in given]
            passes[block] = [Pass(*pair) for pair in zip(given, answers, strict=True)]
            calls = [
                replace(call, hidden=answer)
                for call, answer in zip(calls, answers, strict=True)
            ]
        return [call.hidden for call in calls], passes

    @contextmanager
    def _held(self, block: int) -> Iterator[tuple[SharedBase, Session]]:
        """Hold a block's weights; yield it, and this session's part of it."""
        link = Link("", block, block + 1)
        part = part_of(self.spec, link, self.num_layers, self.layer_block)
        assert part is not None
        if block not in self._bases:
            filling = self.source(part.plan).hollow()
            self._bases[block] = filling, SharedBase(filling.part)
        filling, base = self._bases[block]
        filling.fill()
        try:
            yield base, self._session(block, part, base)
        finally:
            filling.empty()

    def _session(self, block: int, part: SessionSpec, base: SharedBase) -> Session:
        made = base.slice(part.plan, part.state)
        if block not in self._learners:
            own = Learner(made.factors, made.dense, part.optimizer)
            self._learners[block] = own
        learner, log = self._learners[block], StepLog(1)
        return Session(part, made.view, learner, made.folded, log, 0.0)


def _done(base: SharedBase, works: Sequence[Work]) -> list[Tensor]:
    answers = Batcher(base).run(works)
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def _numbers(calls: Iterable[TrunkCall]) -> list[int]:
    return [call.step for call in calls if call.step is not None]
