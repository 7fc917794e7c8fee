# SPDX-License-Identifier: Apache-2.0
"""How the work of calls that wait together is done: each alone, or in one pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from atlas_flwr.errors import AtlasError, TrunkBusy, TrunkError
from atlas_flwr.trunk.engine.base import SharedBase
from atlas_flwr.trunk.engine.buffer import step_together
from atlas_flwr.trunk.engine.joined import JointPass, JointSlot
from atlas_flwr.trunk.engine.leaves import Share
from atlas_flwr.trunk.engine.residence import stepping, with_room
from atlas_flwr.trunk.engine.session import Session
from atlas_flwr.trunk.engine.steps import Pass
from atlas_flwr.trunk.engine.work import (
    Backward,
    Beginning,
    Evaluation,
    Extension,
    Work,
    alone,
)
from atlas_flwr.types import TrunkCall

__all__ = ["Batcher", "JoiningBatcher"]

Found = tuple[Tensor, Share]


class Batcher:
    """Do each call's work alone; when memory is out, once more with room made.

    Parameters
    ----------
    base : SharedBase
        What they run on.
    relieve : Callable[[], int]
        Lets idle sessions make room.
    """

    def __init__(
        self, base: SharedBase, relieve: Callable[[], int] = lambda: 0
    ) -> None:
        self.base = base
        self.relieve = relieve

    def kind(self, work: Work) -> Hashable | None:
        """Return what is equal for work that one pass can do; ``None``: only alone."""
        return None

    def run(self, works: Sequence[Work]) -> list[Any]:
        """Do the work; return the answers, or errors of this library.

        Other errors are raised.
        """
        backward = [work for work in works if isinstance(work, Backward)]
        answers = iter(self._learned(backward))
        return [
            next(answers) if isinstance(work, Backward) else self._answer(work)
            for work in works
        ]

    def _answer(self, work: Work) -> Any:
        # Texts that a pass has failed within are not those that they were before.
        tries = 1 if isinstance(work, Extension) else 2
        try:
            do = partial(alone, self.base, work)
            return with_room(do, self.relieve, tries=tries)
        except AtlasError as error:
            return error

    def _learned(self, works: Sequence[Backward]) -> list[Any]:
        return _learn(works, [self._gradients(work) for work in works])

    def _gradients(self, work: Backward) -> Found | TrunkBusy:
        try:
            return with_room(
                partial(work.gradients, self.base), self.relieve, _Undo([work])
            )
        except TrunkBusy as error:
            return error


class JoiningBatcher(Batcher):
    """Do the work of several sessions in one pass over the base."""

    def kind(self, work: Work) -> Hashable | None:
        """Tell what can be joined: see :func:`can_join`."""
        if not can_join(work.session, work.call) or not self._rows_join():
            return None
        if isinstance(work, Backward | Beginning | Evaluation):
            return type(work), work.call.position_ids is None
        return None

    def _rows_join(self) -> bool:
        return with_room(lambda: self.base.lets_rows_join, self.relieve)

    def run(self, works: Sequence[Work]) -> list[Any]:
        """Do work of one kind; each answer is as if its session had been alone."""
        if len(works) == 1 or isinstance(works[0], Backward):
            return super().run(works)
        try:
            return with_room(partial(self._joined, works), self.relieve)
        except TrunkBusy:
            return [self._answer(work) for work in works]

    def _joined(self, works: Sequence[Work]) -> list[Any]:
        members = [work.member for work in works]
        if isinstance(works[0], Evaluation):
            with torch.no_grad():
                return list(JointPass(self.base, members).answers())
        return list(self._begun([w for w in works if isinstance(w, Beginning)]))

    def _begun(self, works: Sequence[Beginning]) -> list[Pass]:
        members = [work.member for work in works]
        if works[0].recompute:
            with torch.no_grad():
                answers = JointPass(self.base, members).answers()
            return [
                Pass(w.call, answer, nbytes=w.call.hidden.untyped_storage().nbytes())
                for w, answer in zip(works, answers, strict=True)
            ]
        sessions, calls = [w.session for w in works], [w.call for w in works]
        with torch.enable_grad(), self.base.counting(sessions, calls) as counted:
            joint = JointPass(self.base, members)
        tokens = sum(member.tokens for member in members)
        return [
            Pass(
                member.call,
                answer,
                joint=JointSlot(joint, number),
                nbytes=counted.total * member.tokens // tokens,
            )
            for number, (member, answer) in enumerate(
                zip(members, joint.answers(), strict=True)
            )
        ]

    def _learned(self, works: Sequence[Backward]) -> list[Any]:
        try:
            together = partial(self._together, works)
            return _learn(works, with_room(together, self.relieve, _Undo(works)))
        except TrunkBusy as error:
            return [error] if len(works) == 1 else super()._learned(works)

    def _together(self, works: Sequence[Backward]) -> list[Found]:
        found: dict[int, tuple[Tensor, Share]] = {}
        again: list[int] = []
        for joint, slots in _by_graph(works).items():
            graph = joint.take([*slots])
            if graph is None:
                again += slots.values()
                continue
            back = graph.backward({n: works[k].grad for n, k in slots.items()})
            del graph  # before others run again
            found.update({slots[number]: b for number, b in back.items()})
        for k, work in enumerate(works):
            if work.found.output is not None:
                found[k] = work.gradients(self.base)
            elif work.found.joint is None:
                again.append(k)
        found.update(self._run_again(works, sorted(again)))
        return [found[k] for k in range(len(works))]

    def _run_again(
        self, works: Sequence[Backward], places: Sequence[int]
    ) -> dict[int, tuple[Tensor, Share]]:
        """Run passes forward whose graphs are not kept, and back."""
        if len(places) == 1:
            return {k: works[k].gradients(self.base) for k in places}
        if not places:
            return {}
        with torch.enable_grad():
            joint = JointPass(self.base, [works[k].member for k in places])
            graph = joint.take(range(len(places)))
            assert graph is not None
            back = graph.backward({n: works[k].grad for n, k in enumerate(places)})
        return {k: back[n] for n, k in enumerate(places)}


def can_join(session: Session, call: TrunkCall) -> bool:
    """Tell whether a session's rows can stand beside others' in one pass.

    A session that ends the model here, or trains other parameters than adapters, has
    modules of its own. Masks that are not one row a text cannot be filled up, nor can
    positions without a mask, which may say where packed texts begin.
    """
    learner, (mask, positions) = (
        session.learner,
        (call.attention_mask, call.position_ids),
    )
    rows = call.hidden.shape[:2]
    return (
        session.spec.plan.tail is not None
        and len(learner.vectors) == len(learner.dense)
        and (mask is None or mask.shape == rows)
        and (positions is None or (positions.shape == rows and mask is not None))
    )


def _by_graph(works: Sequence[Backward]) -> dict[JointPass, dict[int, int]]:
    """Return, for each joined graph, the place in ``works`` of each of its numbers."""
    found: dict[JointPass, dict[int, int]] = {}
    for k, work in enumerate(works):
        slot = work.found.joint
        if slot is not None:
            found.setdefault(slot.joint, {})[slot.number] = k
    return found


class _Undo:
    """Lets backward passes that have failed halfway be run again, from forward.

    Parameters
    ----------
    works : Sequence[Backward]
        Before they run.
    """

    def __init__(self, works: Sequence[Backward]) -> None:
        self.works = works
        self._seen = [
            (probe, dict(probe.sums), dict(probe.passes))
            for probe in (work.session.probe for work in works)
            if probe is not None
        ]

    def __call__(self) -> None:
        for work in self.works:
            if work.found.joint is not None:
                work.found.joint.joint.drop()
            work.found.forget_graph()
        for probe, sums, passes in self._seen:
            probe.sums, probe.passes = dict(sums), dict(passes)


def _learn(works: Sequence[Backward], found: Sequence[Found | TrunkBusy]) -> list[Any]:
    """Let the sessions learn; those whose step is due step together."""
    with stepping():
        return _learned(works, found)


def _learned(
    works: Sequence[Backward], found: Sequence[Found | TrunkBusy]
) -> list[Any]:
    answers: list[Any] = []
    due: list[Session] = []
    for work, outcome in zip(works, found, strict=True):
        if isinstance(outcome, TrunkBusy):
            answers.append(outcome)
            continue
        back, share = outcome
        try:
            work.check()
        except TrunkError as error:
            answers.append(error)
            continue
        answers.append(back)
        if share.learn(work.step):
            due.append(work.session)
    step_together((s.learner.spec, s.learner.buffers) for s in due)
    for session in due:
        session.learner.stepped(session.log)
    return answers
