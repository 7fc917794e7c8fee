# SPDX-License-Identifier: Apache-2.0
r"""A cut, and a rank for each weight matrix, by importance and memory.

Following HSplitLoRA (arXiv 2505.02795): over all cuts and ranks,

.. math:: \max \sum_W \bar I(W) \log(1 + r_W) \quad \text{s.t.} \quad
          \text{peak bytes} \le \text{budget}

log(1 + r) being concave, so that a second matrix is served before one gets everything.
The client's matrices share its budget; the trunk's share the server's, per session.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from atlas_flwr.budget.knapsack import Item, knapsack
from atlas_flwr.budget.memory import MemoryEstimate
from atlas_flwr.errors import BudgetError

__all__ = ["AdaptedLayer", "Allocation", "allocate", "refuse_uncut"]

MIB = 1 << 20
Peak = Callable[[int, Mapping[str, int]], MemoryEstimate]


@dataclass(frozen=True)
class AdaptedLayer:
    """A weight matrix that may get an adapter.

    Attributes
    ----------
    name : str
        In the whole model.
    block : int
        The block that it is in.
    shape : tuple[int, int]
        (d_out, d_in).
    """

    name: str
    block: int
    shape: tuple[int, int]

    def adapter_bytes(self, rank: int) -> int:
        """Value, gradient and Adam's two moments, in float32."""
        return 16 * rank * sum(self.shape)


@dataclass(frozen=True)
class Allocation:
    """What a client is given.

    Attributes
    ----------
    head, tail : int
        Blocks on the client; ``tail=None`` for a vanilla split.
    ranks : Mapping[str, int]
        By layer, the trunk's too; 0 for no adapter.
    estimate : MemoryEstimate
        The client's predicted peak.
    gain : float
        Sum of importance times log(1 + rank).
    """

    head: int
    tail: int | None
    ranks: Mapping[str, int]
    estimate: MemoryEstimate
    gain: float


def allocate(
    layers: Sequence[AdaptedLayer],
    importance: Mapping[str, float],
    memory: int | None,
    peak: Peak,
    *,
    choices: Sequence[int],
    heads: Sequence[int],
    tail: int | None,
    num_layers: int,
    trunk_memory: int | None = None,
) -> Allocation:
    """Choose the cut and the ranks of the most gain; of equal ones the deepest head.

    Depth comes second, since blocks on the client spare the server, and
    a deeper head is taken only where it costs no rank.

    Parameters
    ----------
    layers : Sequence[AdaptedLayer]
        All that may be adapted.
    importance : Mapping[str, float]
        By layer; layers that are missing have none.
    memory : int, optional
        The client's bytes; ``None`` for no limit.
    peak : Callable[[int, Mapping[str, int]], MemoryEstimate]
        Predicts the client's peak for a head, and ranks of the layers on its side.
    choices : Sequence[int]
        Ranks to choose from, besides 0.
    heads : Sequence[int]
        Heads to choose from.
    tail : int, optional
        Blocks of the tail; ``None`` for a vanilla split.
    num_layers : int
        Blocks of the model.
    trunk_memory : int, optional
        The server's bytes for the adapters of one session; ``None`` for no limit.

    Raises
    ------
    BudgetError
        If not even a head without adapters fits: with the smallest budget that would;
        or if there is no head to choose, as the model has too few blocks to be cut.
    """
    refuse_uncut(heads, num_layers, tail)
    found = [
        chosen
        for head in heads
        if (
            chosen := _at(
                layers,
                importance,
                memory,
                peak,
                [0, *sorted(choices)],
                (head, tail, num_layers),
                trunk_memory,
            )
        )
    ]
    if not found:
        least = min(peak(head, {}).total for head in heads)
        raise BudgetError(
            f"a device of {(memory or 0) / MIB:.1f} MiB holds no part of this model: "
            f"the smallest, {min(heads)} block(s) in the head and no adapters, takes "
            f"{least / MIB:.1f} MiB; give it at least that, or lower batch-size or "
            "max-length"
        )
    most = max(choice.gain for choice in found)
    tied = [choice for choice in found if choice.gain >= most * (1 - 1e-9)]
    return max(tied, key=lambda choice: choice.head)


def refuse_uncut(heads: Sequence[int], num_layers: int, tail: int | None) -> None:
    """Refuse to choose among no heads.

    Raises
    ------
    BudgetError
        If a model of so many blocks leaves none to the trunk.
    """
    if not heads:
        raise BudgetError(
            f"a model of {num_layers} blocks cannot be cut: with a tail of "
            f"{tail or 0} it needs at least {2 + (tail or 0)}; set split='none'"
        )


def _at(
    layers: Sequence[AdaptedLayer],
    importance: Mapping[str, float],
    memory: int | None,
    peak: Peak,
    options: Sequence[int],
    cut: tuple[int, int | None, int],
    trunk_memory: int | None,
) -> Allocation | None:
    head, tail, num_layers = cut
    trunk = range(head, num_layers - (tail or 0))
    theirs = [layer for layer in layers if layer.block in trunk]
    mine = [layer for layer in layers if layer.block not in trunk]
    bare = peak(head, {}).total
    if memory is not None and bare > memory:
        return None

    ranks = _fitting(mine, importance, options, memory, lambda r: peak(head, r))
    ranks |= _chosen(
        theirs,
        importance,
        options,
        trunk_memory,
        lambda layer, rank: layer.adapter_bytes(rank),
    )
    own = {layer.name: ranks[layer.name] for layer in mine}
    return Allocation(head, tail, ranks, peak(head, own), _gain(ranks, importance))


def _fitting(
    layers: Sequence[AdaptedLayer],
    importance: Mapping[str, float],
    options: Sequence[int],
    memory: int | None,
    peak: Callable[[Mapping[str, int]], MemoryEstimate],
) -> dict[str, int]:
    """Choose ranks that fit, by each of two ways of charging them; keep the better.

    Layers that share an input keep it once, so that a layer's cost depends on the
    others. Charged to each layer alone, it is right where few are adapted; charged to
    all together, where most are. Neither charges too little, but where another peak, a
    client's check of its host, hides what a layer alone would add; then a third is that
    nothing is adapted.
    """
    names = [layer.name for layer in layers]
    bare, one = peak({}).total, peak(dict.fromkeys(names, 1)).total
    slopes = {
        name: peak({**dict.fromkeys(names, 1), name: 2}).total - one for name in names
    }

    def alone(layer: AdaptedLayer, rank: int) -> int:
        return peak({layer.name: rank}).total - bare if rank else 0

    def together(layer: AdaptedLayer, rank: int) -> int:
        return slopes[layer.name] * rank

    base = one - sum(slopes.values())
    ways = [
        _within(layers, importance, options, memory, bare, alone, peak),
        _within(layers, importance, options, memory, base, together, peak),
        dict.fromkeys(names, 0),
    ]
    return max(
        (ranks for ranks in ways if ranks is not None),
        key=lambda ranks: _gain(ranks, importance),
    )


def _within(
    layers: Sequence[AdaptedLayer],
    importance: Mapping[str, float],
    options: Sequence[int],
    memory: int | None,
    base: int,
    cost: Callable[[AdaptedLayer, int], int],
    peak: Callable[[Mapping[str, int]], MemoryEstimate],
) -> dict[str, int] | None:
    """Choose; again with less room where the whole is more than its parts."""
    if memory is None:
        return _chosen(layers, importance, options, None, cost)
    capacity = memory - base
    while capacity >= 0:
        ranks = _chosen(layers, importance, options, capacity, cost)
        over = peak(ranks).total - memory
        if over <= 0:
            return ranks
        if not capacity:
            return None
        capacity = max(capacity - over, capacity // 2)
    return None


def _gain(ranks: Mapping[str, int], importance: Mapping[str, float]) -> float:
    return sum(importance.get(n, 0.0) * math.log1p(r) for n, r in ranks.items())


def _chosen(
    layers: Sequence[AdaptedLayer],
    importance: Mapping[str, float],
    options: Sequence[int],
    capacity: int | None,
    cost: Callable[[AdaptedLayer, int], int],
) -> dict[str, int]:
    allowed = [sorted({min(r, *layer.shape) for r in options}) for layer in layers]
    if capacity is None:
        pairs = zip(layers, allowed, strict=True)
        return {layer.name: max(ranks) for layer, ranks in pairs}
    items = [
        Item(
            tuple(importance.get(layer.name, 0.0) * math.log1p(r) for r in ranks),
            tuple(cost(layer, r) for r in ranks),
        )
        for layer, ranks in zip(layers, allowed, strict=True)
    ]
    picked = knapsack(items, capacity)
    return {
        layer.name: ranks[option]
        for layer, ranks, option in zip(layers, allowed, picked, strict=True)
    }
