# SPDX-License-Identifier: Apache-2.0
"""What a training step keeps alive beside weights, as a function of its size.

Letters: B examples, T tokens, K positions that the LM head runs on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["Footprint", "Growth", "StepSize", "coarse"]


@dataclass(frozen=True)
class StepSize:
    """How large a training step is.

    Attributes
    ----------
    batch, length : int
        B and T.
    kept : int
        K; 0 for classifiers.
    """

    batch: int
    length: int
    kept: int = 0

    @property
    def terms(self) -> tuple[float, ...]:
        """1, B, BT, BT^2 and BK: what a step's tensors are proportional to."""
        b, t, k = self.batch, self.length, self.kept
        return 1.0, float(b), float(b * t), float(b * t * t), float(b * k)


@dataclass(frozen=True)
class Growth:
    """Bytes that grow with the size of a step.

    Attributes
    ----------
    fixed, row, token, pair, logit : float
        Bytes; bytes an example, a token, a pair of tokens of one example (attention,
        masks), and a position whose logits are computed.
    """

    fixed: float = 0.0
    row: float = 0.0
    token: float = 0.0
    pair: float = 0.0
    logit: float = 0.0

    def at(self, size: StepSize) -> float:
        """Return the bytes of a step."""
        mine = self.fixed, self.row, self.token, self.pair, self.logit
        return sum(a * b for a, b in zip(mine, size.terms, strict=True))


@dataclass(frozen=True)
class Footprint:
    """What training keeps alive, without weights and what is trained.

    All of it at rank 1 in every adapted layer, whose own share is negligible.

    Attributes
    ----------
    block : Growth
        What a block keeps from its forward to its backward.
    forward, loss, backward : Growth
        Peaks of a client with one block in its head and one in its tail: until the
        last block has run; until the loss's gradient has come back to that block; and
        after that.
    trunk, open : Growth
        Of a trunk without blocks: the peak in a step's backward; and what it keeps from
        a step's forward until then.
    hidden : Growth
        Hidden states.
    start : Growth
        What alignment with the round's start keeps of each step, throughout the round.
    spared : Mapping[frozenset[str], float]
        Bytes a token that a block does not keep if none of these layers is adapted:
        their input.
    """

    block: Growth
    forward: Growth
    loss: Growth
    backward: Growth
    trunk: Growth
    open: Growth
    hidden: Growth
    start: Growth = field(default_factory=Growth)
    spared: Mapping[frozenset[str], float] = field(default_factory=dict)

    def blocks(self, adapted: Iterable[Collection[str]], size: StepSize) -> float:
        """Return what blocks keep, given the names of each one's adapted layers."""
        kept = 0.0
        for names in adapted:
            bare = [n for group, n in self.spared.items() if group.isdisjoint(names)]
            kept += self.block.at(size) - size.batch * size.length * sum(bare)
        return kept


def coarse(hidden: int, widest: int, vocabulary: int) -> Footprint:
    """Guess a footprint from a model's widths, generously, where none was traced.

    Parameters
    ----------
    hidden, widest, vocabulary : int
        d, the longest side w of a block's layer, and V, 0 for classifiers: in float32
        4 (14 d + 5 w) bytes a token and block, and 12 V a position with logits.
    """
    block, state = 4.0 * (14 * hidden + 5 * widest), 4.0 * hidden
    both = Growth(token=2 * block)
    return Footprint(
        block=Growth(token=block),
        forward=both,
        loss=Growth(token=2 * block, logit=12.0 * vocabulary),
        backward=both,
        trunk=Growth(token=4 * state),
        open=Growth(token=2 * state),
        hidden=Growth(token=state),
    )
