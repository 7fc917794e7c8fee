# SPDX-License-Identifier: Apache-2.0
"""What a joined pass differentiates by: the sessions' parameters, stacked.

Where all sessions have the same adapters, one copy of their buffers holds all; else
each layer's factors are filled up to the largest rank among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from atlas_flwr.lora import scales_inputs
from atlas_flwr.split.part import PartInfo
from atlas_flwr.trunk.engine.session import Session
from atlas_flwr.trunk.engine.stacking import (
    Fold,
    JoinedAdapters,
    StackedFactors,
    Watching,
)

__all__ = ["Leaves", "Segment", "Share"]


@dataclass(frozen=True)
class Segment:
    """Blocks that the same sessions' rows pass through.

    Attributes
    ----------
    start, stop : int
        Blocks, counted in the whole model.
    order : tuple[int, ...]
        The sessions' numbers in the pass, in the order of their rows.
    info : PartInfo
        Tells which block a layer is in.
    """

    start: int
    stop: int
    order: tuple[int, ...]
    info: PartInfo

    def names(self, sessions: Sequence[Session], kind: str) -> list[str]:
        """Return the layers here of which one of the sessions has ``kind``."""
        found = dict.fromkeys(n for s in sessions for n in getattr(s, kind))
        here = range(self.start, self.stop)
        return [name for name in found if self.info.block_of(name) in here]


@dataclass(frozen=True)
class Share:
    """A session's share of the gradients of a joined pass.

    Attributes
    ----------
    session : Session
        Whose.
    whole : Tensor, optional
        Shape (P,): of all parameters, as they lie in the session's buffer.
    grads : Sequence[Tensor or None]
        Else: of each of them.
    """

    session: Session
    whole: Tensor | None = None
    grads: Sequence[Tensor | None] = ()

    def learn(self, step: int) -> bool:
        """Add it to what the session has learned; tell if an optimiser step is due."""
        learner = self.session.learner
        learner.in_order(step, self._add)
        return learner.counts_in()

    def _add(self) -> None:
        learner = self.session.learner
        if self.whole is None:
            learner.add(self.grads)
        else:
            (buffer,) = learner.buffers
            buffer.add_whole(self.whole)


@dataclass(frozen=True)
class _Place:
    """Where a session's parameter stands in a leaf.

    Attributes
    ----------
    leaf : int
        Which one.
    row : int
        The session's.
    part : tuple[slice, ...]
        What of the row is the parameter; the rest is filled up.
    scale : float
        By what it is multiplied there.
    """

    leaf: int
    row: int
    part: tuple[slice, ...]
    scale: float = 1.0

    def cut(self, grads: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
        """Cut the parameter's gradient out of the leaf's."""
        grad = grads[self.leaf]
        if grad is None:
            return None
        own = grad[self.row][self.part].reshape(shape)
        return own if self.scale == 1 else own * self.scale


@dataclass
class Leaves:
    """Stacked parameters of the sessions of a pass.

    Attributes
    ----------
    sessions : Sequence[Session]
        By number.
    tensors : list[Tensor]
        Leaves.
    adapters : list[JoinedAdapters]
        What each segment has beside the base.
    places : list[dict[int, _Place]]
        For each session, by its parameters' ``id``; empty where each leaf's rows are
        one parameter of all sessions, in their order.
    scales : Tensor, optional
        In that case, by what the parameters are multiplied, shape (P,).
    asked : set[int]
        Sessions of which a backward pass is taken; others' probes see none.
    """

    sessions: Sequence[Session]
    tensors: list[Tensor] = field(default_factory=list)
    adapters: list[JoinedAdapters] = field(default_factory=list)
    places: list[dict[int, _Place]] = field(default_factory=list)
    scales: Tensor | None = None
    asked: set[int] = field(default_factory=set)

    @classmethod
    def of(
        cls,
        sessions: Sequence[Session],
        segments: Sequence[Segment],
        rounded: torch.dtype | None = None,
    ) -> Leaves:
        """Stack the parameters of the sessions.

        Parameters
        ----------
        sessions : Sequence[Session]
            By number.
        segments : Sequence[Segment]
            Of the pass.
        rounded : torch.dtype, optional
            What LoRA's factors are multiplied in; their gradients are not rounded.
        """
        layouts = {session.learner.layout for session in sessions}
        with torch.no_grad():
            if len(layouts) == len(segments) == 1:
                made = _alike(sessions, segments[0], rounded)
            else:
                made = _unlike(sessions, segments, rounded)
        for tensor in made.tensors:
            tensor.requires_grad_()
        return made

    def shares(self, grads: Sequence[Tensor | None]) -> dict[int, Share]:
        """Give sessions that are asked their shares of the gradients of the tensors.

        The parameters of others may have moved since.
        """
        count = len(self.sessions)
        there = [g.reshape(count, -1) for g in grads if g is not None]
        if self.scales is not None and len(there) == len(grads):
            rows = torch.cat(there, dim=1).mul_(self.scales)
            return {k: Share(self.sessions[k], rows[k]) for k in self.asked}
        found = {}
        for number in self.asked:
            own = [
                self._place(number, leaf, p).cut(grads, p.shape)
                for leaf, p in enumerate(self.sessions[number].parameters)
            ]
            found[number] = Share(self.sessions[number], None, own)
        return found

    def _place(self, number: int, leaf: int, parameter: Tensor) -> _Place:
        if self.scales is None:
            return self.places[number][id(parameter)]
        scale = _scales(self.sessions[number])[leaf]
        return _Place(leaf, number, (), scale)


def _alike(
    sessions: Sequence[Session], segment: Segment, rounded: torch.dtype | None
) -> Leaves:
    """Stack the buffers of sessions with the same adapters and blocks."""
    first = sessions[0]
    made = Leaves(sessions)
    lower: list[Tensor] = []
    if first.parameters:
        values = torch.stack([s.learner.buffers[0].values for s in sessions])
        sizes = [p.numel() for p in first.parameters]
        made.scales = torch.repeat_interleave(
            values.new_tensor(_scales(first)),
            torch.tensor(sizes, device=values.device),
            output_size=values.shape[1],
        )
        values.mul_(made.scales)
        shapes = [(len(sessions), *p.shape) for p in first.parameters]
        made.tensors = _cut(values, sizes, shapes)
        if rounded is not None:
            lower = _cut(values.to(rounded), sizes, shapes)
    leaf, low = iter(made.tensors), iter(lower)
    factors = {}
    for name in first.factors:
        pair = next(leaf), next(leaf)
        factors[name] = StackedFactors(*pair, (next(low), next(low)) if lower else None)
    vectors = {name: next(leaf) for name in first.vectors}
    inputs = {n: v for n, v in vectors.items() if scales_inputs(first.vectors[n])}
    outputs = {n: v for n, v in vectors.items() if n not in inputs}
    made.adapters = [_adapters(made, segment, factors, inputs, outputs)]
    return made


def _cut(
    values: Tensor, sizes: Sequence[int], shapes: Sequence[tuple[int, ...]]
) -> list[Tensor]:
    """Cut buffers, shape (K, P), into a tensor a parameter."""
    rows = values.split(list(sizes), dim=1)
    return [r.view(shape).detach() for r, shape in zip(rows, shapes, strict=True)]


def _unlike(
    sessions: Sequence[Session],
    segments: Sequence[Segment],
    rounded: torch.dtype | None,
) -> Leaves:
    """Fill up the adapters of sessions with other layers, ranks or blocks."""
    made = Leaves(sessions, places=[{} for _ in sessions])
    filling = _Filling(made, rounded)
    for segment in segments:
        own = [sessions[number] for number in segment.order]
        factors = {
            n: filling.factors(n, segment) for n in segment.names(own, "factors")
        }
        sides = []
        for is_inward in (True, False):
            found = {
                name: filling.vectors(name, segment, is_inward)
                for name in segment.names(own, "vectors")
            }
            sides.append({name: v for name, v in found.items() if v is not None})
        made.adapters.append(_adapters(made, segment, factors, *sides))
    filling.copy()
    return made


@dataclass
class _Filling:
    """Makes leaves of unlike parameters, each a row that is filled up."""

    leaves: Leaves
    rounded: torch.dtype | None
    lower: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    into: list[Tensor] = field(default_factory=list)
    out_of: list[Tensor] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)

    def factors(self, name: str, segment: Segment) -> StackedFactors:
        """Stack the factors of a layer, of all sessions of a segment."""
        numbers = segment.order
        found = [self.leaves.sessions[number].factors.get(name) for number in numbers]
        there = [f for f in found if f is not None]
        (m, n), rank = there[0].shape, max(f.rank for f in there)
        A = there[0].A.new_zeros(len(numbers), rank, n)
        B = there[0].B.new_zeros(len(numbers), m, rank)
        leaf_A, leaf_B = self._leaf(A), self._leaf(B)
        for row, (number, own) in enumerate(zip(numbers, found, strict=True)):
            if own is not None:
                kept = slice(own.rank)
                left = slice(None), kept
                self._put(number, own.A, _Place(leaf_A, row, (kept,)))
                self._put(number, own.B, _Place(leaf_B, row, left, own.scale))
        return StackedFactors(A, B, self._lowered(A, B))

    def vectors(self, name: str, segment: Segment, is_inward: bool) -> Tensor | None:
        """Stack a layer's IA3 vectors that scale its inputs, or else its outputs."""
        found = [
            self.leaves.sessions[number].vectors.get(name) for number in segment.order
        ]
        ours = [
            v if v is not None and scales_inputs(v) == is_inward else None
            for v in found
        ]
        there = [v for v in ours if v is not None]
        if not there:
            return None
        stacked = there[0].new_ones(len(ours), *there[0].shape)
        leaf = self._leaf(stacked)
        for row, (number, own) in enumerate(zip(segment.order, ours, strict=True)):
            if own is not None:
                self._put(number, own, _Place(leaf, row, ()))
        return stacked

    def copy(self) -> None:
        """Copy the parameters to their places, all at once."""
        several: Any = torch  # its types do not know these
        if self.into:
            several._foreach_copy_(self.into, self.out_of)
            several._foreach_mul_(self.into, self.scales)
        if self.lower:
            several._foreach_copy_(*map(list, zip(*self.lower, strict=True)))

    def _lowered(self, *leaves: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return room for leaves in the dtype that they are multiplied in."""
        if self.rounded is None:
            return None
        A, B = (torch.empty_like(leaf, dtype=self.rounded) for leaf in leaves)
        self.lower += zip((A, B), leaves, strict=True)
        return A, B

    def _leaf(self, tensor: Tensor) -> int:
        self.leaves.tensors.append(tensor)
        return len(self.leaves.tensors) - 1

    def _put(self, number: int, parameter: Tensor, place: _Place) -> None:
        self.leaves.places[number][id(parameter)] = place
        self.into.append(self.leaves.tensors[place.leaf][place.row][place.part])
        self.out_of.append(parameter.detach())
        self.scales.append(place.scale)


def _scales(session: Session) -> list[float]:
    """Return by what each of a session's parameters is multiplied in a leaf."""
    scales = [s for f in session.factors.values() for s in (1.0, f.scale)]
    return scales + [1.0] * len(session.vectors)


def _adapters(
    leaves: Leaves,
    segment: Segment,
    factors: Mapping[str, StackedFactors],
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
) -> JoinedAdapters:
    """Add what no gradient is taken of: folded products and probes."""
    own = [leaves.sessions[number] for number in segment.order]
    folds = {name: _folds(own, name) for name in segment.names(own, "folded")}
    probes = {number: leaves.sessions[number].probe for number in segment.order}
    watching = [
        Watching(row, number, probe)
        for row, (number, probe) in enumerate(probes.items())
        if probe is not None
    ]
    return JoinedAdapters(
        len(own), factors, folds, inputs, outputs, watching, leaves.asked
    )


def _folds(sessions: Sequence[Session], name: str) -> list[Fold]:
    """Gather the sessions that have one and the same product folded into a layer."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for row, session in enumerate(sessions):
        found = session.folded.get(name)
        if found is not None:
            places = found.A.data_ptr(), found.B.data_ptr()
            alike.setdefault((*places, found.rank, found.scale), []).append(row)
    made = []
    for rows in alike.values():
        factors = sessions[rows[0]].folded[name]
        everyone = len(rows) == len(sessions)
        index = None if everyone else torch.tensor(rows, device=factors.A.device)
        made.append(Fold(factors, index))
    return made
