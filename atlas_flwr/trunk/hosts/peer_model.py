# SPDX-License-Identifier: Apache-2.0
"""What peers know of the model: who holds what of a session, and what it takes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from atlas_flwr.budget.chains import Link, Need
from atlas_flwr.budget.pairing import Host
from atlas_flwr.split import SplitPlan
from atlas_flwr.trunk.engine.session import SessionSpec

__all__ = ["PeerModel", "part_of"]


@dataclass(frozen=True)
class PeerModel:
    """What peers know of the model.

    Attributes
    ----------
    blocks : range
        Those that every way holds.
    num_layers : int
        Of the whole model.
    layer_block : Callable[[str], int | None]
        Block of a layer or an array; ``None`` for what is outside the blocks.
    need : Callable[[int, int], int]
        Bytes of a trunk of so many blocks with so many guests.
    even : float
        Bits a second of a link that counts as much as the trunk's work (see
        :func:`~atlas_flwr.budget.pairing.pair`).
    """

    blocks: range
    num_layers: int
    layer_block: Callable[[str], int | None]
    need: Need
    even: float = 0.0

    def part(self, spec: SessionSpec, link: Link) -> SessionSpec | None:
        """Return what of a session is on a link, if anything."""
        return part_of(spec, link, self.num_layers, self.layer_block)

    def too_little(self, hosts: Collection[Host]) -> str:
        """Say why hosts make no way, and what one would need."""
        if not hosts:
            return (
                "no client lends memory to the trunk; in a simulation set peer-memory, "
                "in a deployment trunk-memory in the node config of those that host"
            )
        blocks, need = self.blocks, self.need
        return (
            f"{len(hosts)} peers lend {_mib(sum(h.memory for h in hosts))} in all, and "
            f"no peer, nor several of one group, hold the trunk: its {len(blocks)} "
            f"blocks with one guest take {_mib(need(len(blocks), 1))}, one block "
            f"{_mib(need(1, 1))}; let some lend more (peer-memory, or trunk-memory in "
            "their node config)"
        )


def part_of(
    spec: SessionSpec,
    link: Link,
    num_layers: int,
    layer_block: Callable[[str], int | None],
) -> SessionSpec | None:
    """Return what of a session is on a link, if anything.

    Parameters
    ----------
    spec : SessionSpec
        The session.
    link : Link
        Says which blocks.
    num_layers, layer_block : int, Callable[[str], int | None]
        As of :class:`PeerModel`.
    """
    wanted = spec.plan.trunk_range(num_layers)
    first, stop = max(link.first, wanted.start), min(link.stop, wanted.stop)
    if first >= stop:
        return None
    ends = stop == wanted.stop
    tail = None if ends and spec.plan.tail is None else num_layers - stop
    places = {*range(first, stop), *([None] if ends else [])}
    state = spec.state
    names = [n for n in state.layers if layer_block(n) in places]
    dense = {k: v for k, v in state.dense.items() if layer_block(k) in places}
    folds = {n: k for n, k in spec.folds.items() if layer_block(n) in places}
    mine, plan = state.select(names, dense), SplitPlan(first, tail)
    return replace(spec, plan=plan, state=mine, folds=folds, client="", holder="")


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
