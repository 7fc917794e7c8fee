# SPDX-License-Identifier: Apache-2.0
"""What training takes of a client's memory and of the trunk's, predicted.

Peak bytes of tensors, for a client with blocks C and ranks r, in the dtype of b bytes::

    weights      b (embeddings + output + |C| block)       each once, tied ones too
    adapters     16 (sum r (d_out + d_in) + dense)         value, gradient, two moments
    activations  peak of a client of 2 blocks + (|C| - 2) block + 4 B T sum r,
                 less the inputs of layers that have no adapter
    logits       what the loss takes on top of that peak
    workspace    min(6 MiB, b (B T w + w d))               what BLAS packs matrices into
    process      12 MiB                                    small objects, and holes

Peaks, and what a block keeps, are polynomials in B, T and K that were traced once for
the architecture (:class:`~atlas_flwr.budget.footprint.Footprint`). The trunk holds its
blocks once, for each session its adapters and its last two answers, and for each step
under way what its blocks keep. docs/memory-model.md compares all this with
measurements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from atlas_flwr.budget.architecture import Adapters, Architecture, Ranks
from atlas_flwr.budget.footprint import StepSize
from atlas_flwr.errors import BudgetError

__all__ = [
    "Architecture",
    "MemoryEstimate",
    "Ranks",
    "Repeated",
    "TrunkSession",
    "client_memory",
    "trunk_memory",
]

FLOAT32 = 4
VALUE_GRADIENT_MOMENTS = 4
VALUE_MOMENTS = 3  # a session that waits has no gradient
WORKSPACE = 6 << 20  # MKL's, seen on x86 with one thread
PROCESS = 12 << 20  # at most 10 were seen beyond what is predicted of tensors
CROSSED = 4  # of a step that is checked: hidden states and gradients, both ways
REMEMBERED = 2 * 4  # a session's last two steps: two questions, and an answer to each


@dataclass(frozen=True)
class MemoryEstimate:
    """Predicted peak bytes, by what takes them.

    Attributes
    ----------
    weights : int
        Of the parts that are held.
    adapters : int
        What is trained: values, gradients and Adam's moments.
    activations : int
        What passes keep, and the most that they use for a moment.
    logits : int
        What the loss takes beyond that.
    workspace : int
        Buffers of the linear algebra library.
    remembered : int
        Answers that a trunk keeps, to give them again, or a client, to stay near them,
        or to check them.
    check : int
        What repeating a round on the trunk takes beyond the peak of its steps.
    process : int
        What is no large tensor: a client's small objects, and holes between them.
    """

    weights: int
    adapters: int
    activations: int
    logits: int
    workspace: int = 0
    remembered: int = 0
    check: int = 0
    process: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        held = self.weights + self.adapters + self.remembered + self.process
        return held + self.activations + self.logits + self.workspace + self.check


@dataclass(frozen=True)
class TrunkSession:
    """A client as the trunk sees it.

    Attributes
    ----------
    head, tail : int
        Blocks on the client; ``tail=None`` for a vanilla split.
    ranks : Ranks
        Of the trunk's adapted layers.
    """

    head: int
    tail: int | None
    ranks: Ranks


@dataclass(frozen=True)
class Repeated:
    """A round that a client repeats itself on its trunk, to check it.

    Attributes
    ----------
    steps : int
        Of the round.
    ranks : Ranks
        Of the trunk's adapted layers.
    accumulate : int
        Steps whose gradients are added up.
    """

    steps: int
    ranks: Ranks
    accumulate: int = 1


def client_memory(
    architecture: Architecture,
    *,
    head: int,
    tail: int | None,
    ranks: Ranks | None = None,
    rank: int | None = None,
    batch: int,
    length: int,
    logits_to_keep: int = 2,
    dtype_bytes: int = 4,
    aligned_steps: int = 0,
    crossing: int | None = None,
    repeated: Repeated | None = None,
) -> MemoryEstimate:
    """Predict a client's peak while it trains.

    Parameters
    ----------
    architecture : Architecture
        The model.
    head, tail : int
        Blocks on the client; ``tail=None`` for a vanilla split.
    ranks : Ranks
        LoRA ranks of the client's adapted layers.
    rank : int
        The same as ``ranks``, for one rank.
    batch, length : int
        Examples in a step, and tokens of the longest, virtual ones counted.
    logits_to_keep : int
        Positions that the LM head runs on; a label of n tokens needs n + 1.
    dtype_bytes : int
        Bytes of a weight; those of the footprint's dtype.
    aligned_steps : int
        Steps of a round whose loss is aligned with its start; of the footprint, too.
    crossing : int, optional
        Positions of an example that cross, and so reach the tail; all, by default.
    repeated : Repeated, optional
        The round, if it checks its trunk.

    Raises
    ------
    BudgetError
        If neither ``rank`` nor ``ranks`` is given, or a rank is below 0 or for an
        unknown layer.
    """
    a, steps = architecture, architecture.steps
    given = _one_of(ranks, rank)
    kept = logits_to_keep if a.vocabulary else 0
    size = StepSize(batch, length, kept)
    behind = size if crossing is None else StepSize(batch, crossing, min(kept, 1))
    ends = range(a.num_layers - (tail or 0), a.num_layers)
    own, last = Adapters.of(a, range(head), given), Adapters.of(a, ends, given)
    ends_here = tail is not None
    around = a.embedding_params + (a.output_params if ends_here else 0)
    dense = a.dense_params if ends_here else 0
    trained = own.params + last.params + a.prompt_params
    # Peaks were traced with a block on each side of the cut; that behind it is shorter.
    block, shorter = steps.block.at(size), steps.block.at(behind)
    peak = max(steps.forward.at(size), steps.backward.at(size)) - block + shorter
    blocks = steps.blocks(own.layers, size) - block
    blocks += steps.blocks(last.layers, behind) - shorter
    low = FLOAT32 * batch * (length * own.ranks + behind.length * last.ranks)
    loss = steps.loss.at(behind) - shorter + block
    values = FLOAT32 * VALUE_GRADIENT_MOMENTS
    estimate = MemoryEstimate(
        weights=dtype_bytes * (around + (head + len(ends)) * a.block_params),
        adapters=values * trained + (values - dtype_bytes) * dense,
        activations=_bytes(peak + blocks + low),
        logits=_bytes(loss - peak) if ends_here else 0,
        workspace=_workspace(a, size, dtype_bytes),
        remembered=_bytes(aligned_steps * steps.start.at(behind)),
        process=PROCESS,
    )
    if repeated is None or tail is None:
        return estimate
    return _checking(a, estimate, (head, tail), repeated, behind, dtype_bytes)


def trunk_memory(
    architecture: Architecture,
    *,
    sessions: Sequence[TrunkSession],
    batch: int,
    length: int,
    in_flight: int = 1,
    recompute: bool = False,
    covers: tuple[int, int | None] = (1, 1),
    logits_to_keep: int = 2,
    dtype_bytes: int = 4,
    handed: int = 0,
) -> MemoryEstimate:
    """Predict the trunk's peak while its sessions train.

    Parameters
    ----------
    architecture : Architecture
        The model.
    sessions : Sequence[TrunkSession]
        Open at once.
    batch, length : int
        Examples in a step, and tokens of the longest.
    in_flight : int
        Steps at once between their forward and the end of their backward; the largest
        are counted.
    recompute : bool
        Whether forward is run again in backward, instead of kept.
    covers : tuple[int, int | None]
        Head and tail of the plan whose trunk is loaded.
    logits_to_keep : int
        Of vanilla sessions.
    dtype_bytes : int
        Bytes of a weight; those of the footprint's dtype. Adapters are float32.
    handed : int
        Steps' hidden states, or gradients of them, that neighbours in a chain have
        brought each session and that are kept.

    Raises
    ------
    BudgetError
        If ``in_flight`` is less than 1, or a rank is below 0 or for an unknown layer.
    """
    a, steps = architecture, architecture.steps
    if in_flight < 1:
        raise BudgetError(f"in_flight={in_flight}; allowed: 1 and up")
    loaded = a.num_layers - covers[0] - (covers[1] or 0)
    weights = loaded * a.block_params
    if covers[1] is None:
        weights += a.output_params + (a.hidden * a.vocabulary if a.tied else 0)
    size = StepSize(batch, length, logits_to_keep if a.vocabulary else 0)
    owned = [_Load.of(a, session, size) for session in sessions]
    adapters = sum(FLOAT32 * VALUE_MOMENTS * load.trained for load in owned)
    largest = sorted(owned, key=lambda load: load.kept, reverse=True)[:in_flight]
    most = max((load.kept for load in owned), default=0.0)
    ends = any(session.tail is None for session in sessions)
    if recompute:
        # The step that is run again holds two answers, the others one, all a question.
        waiting = (2 * len(largest) - 1) * steps.hidden.at(size)
    else:
        waiting = sum(steps.open.at(size) + load.kept for load in largest[1:])
    peak = max(steps.forward.at(size), steps.backward.at(size))
    return MemoryEstimate(
        weights=dtype_bytes * weights,
        adapters=adapters + FLOAT32 * max((load.trained for load in owned), default=0),
        activations=_bytes(steps.trunk.at(size) + most + waiting) if owned else 0,
        logits=_bytes(steps.loss.at(size) - peak) if ends else 0,
        workspace=_workspace(a, size, dtype_bytes),
        remembered=_bytes((REMEMBERED + handed) * len(owned) * steps.hidden.at(size)),
    )


@dataclass(frozen=True)
class _Load:
    """What a session trains (parameters), and what a step of it keeps (bytes)."""

    trained: int
    kept: float

    @classmethod
    def of(cls, a: Architecture, session: TrunkSession, size: StepSize) -> _Load:
        mine = range(session.head, a.num_layers - (session.tail or 0))
        own = Adapters.of(a, mine, session.ranks)
        dense = a.dense_params if session.tail is None else 0
        low = FLOAT32 * size.batch * size.length * own.ranks
        return cls(own.params + dense, a.steps.blocks(own.layers, size) + low)


def _checking(
    a: Architecture,
    estimate: MemoryEstimate,
    cut: tuple[int, int],
    repeated: Repeated,
    size: StepSize,
    dtype_bytes: int,
) -> MemoryEstimate:
    """Add what a round's check takes of a client, which holds a block at a time.

    It keeps what crossed until the round is over, and then, in the place of what a step
    keeps, the adapters of all the trunk's blocks and what goes into each of them.
    """
    head, tail = cut
    blocks = range(head, a.num_layers - tail)
    here = head, a.num_layers - head - 1
    one = trunk_memory(
        a,
        sessions=[TrunkSession(*here, repeated.ranks)],
        batch=size.batch,
        length=size.length,
        covers=here,
        dtype_bytes=dtype_bytes,
    )
    trained = Adapters.of(a, blocks[1:], repeated.ranks).params
    hidden = a.steps.hidden.at(size)
    kept = FLOAT32 * VALUE_GRADIENT_MOMENTS * trained
    kept += _bytes(repeated.accumulate * (len(blocks) + 1) * hidden)
    check = one.total - one.remembered + kept
    step = estimate.activations + estimate.logits + estimate.workspace
    crossed = _bytes(CROSSED * repeated.steps * hidden)
    return replace(
        estimate,
        remembered=estimate.remembered + crossed,
        check=max(check - step, 0),
    )


def _workspace(a: Architecture, size: StepSize, dtype_bytes: int) -> int:
    panels = a.widest * (size.batch * size.length + a.hidden)
    return min(WORKSPACE, dtype_bytes * panels)


def _one_of(ranks: Ranks | None, rank: int | None) -> Ranks:
    found = rank if ranks is None else ranks
    if found is None:
        raise BudgetError("client_memory needs ranks=, or rank= for one rank")
    return found


def _bytes(value: float) -> int:
    return max(math.ceil(value), 0)
