# SPDX-License-Identifier: Apache-2.0
r"""Aggregation of products, per layer, wherever the layer ran.

With weights p_k, renormalised over the clients that have the layer, and scales s_k:

.. math:: \sum_k p_k s_k B_k A_k
          = [B_1 | \dots | B_K] [p_1 s_1 A_1; \dots; p_K s_K A_K]

following HSplitLoRA (arXiv 2505.02795) and FLoRA (NeurIPS'24, arXiv 2409.05976). No
client's factor meets another's. A group holds the product D_t in canonical form (see
:mod:`atlas_flwr.lora.spectrum`), whose singular triples (u_j, s_j, v_j) are in falling
order, and a client of rank r_k is sent live directions L_k and folded ones F_k:

========  =======================  ==============  ==================================
rule      L_k                      F_k             D_t
========  =======================  ==============  ==================================
truncate  first r_k of D_{t-1}     none            sum_k p_k L'_k
both      first r_k of D_{t-1}     the others      sum_k p_k (F_k + L'_k)  [+ E_{t-1}]
fold      fresh, product 0         all             D_{t-1} + sum_k p_k L'_k
========  =======================  ==============  ==================================

Under ``both`` and ``fold`` F_k + L_k = D_{t-1} for everyone: the forward pass is exact
at any rank, also for newcomers and those who skipped rounds, and what is learned adds
up exactly.

With ``flat``, ``both`` hands out no more of D_t than its first sum_k r_k directions,
or as many as before where these were more. What is beyond, E_t, stays with the group,
dense (see :mod:`atlas_flwr.lora.remainder`): D_t is as exact, and clients lack E_t
until its directions are among the strongest.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from logging import WARNING

import torch
from torch import Tensor

from atlas_flwr.aggregation.contribution import (
    Contribution,
    dense_means,
    layer_names,
    shares,
)
from atlas_flwr.aggregation.rule import Rule, Start
from atlas_flwr.errors import AdapterError
from atlas_flwr.log import log
from atlas_flwr.lora import (
    AdapterState,
    LoraFactors,
    Scaling,
    concatenate,
    damped,
    divided,
    initial_factors,
    leading,
    trailing,
)
from atlas_flwr.seeds import derive_seed

__all__ = [
    "Both",
    "Fold",
    "ProductRule",
    "Truncate",
    "summed_in_parts",
    "weighted_rest",
]

# Relative; float32 factors of a float64 decomposition stay far below it.
_TOLERANCE = 1e-4


class ProductRule(Rule):
    """A group holds one product a layer, in canonical form."""

    def combine(
        self, held: AdapterState | None, parts: Sequence[Contribution]
    ) -> AdapterState:
        """Add the members' products to what they left of the group's."""
        shares(parts)
        factors, rest = {}, {}
        for name in layer_names(parts):
            have = [part for part in parts if name in part.state.factors]
            p = shares(have)
            stack = [part.state.factors[name] for part in have]
            before = held.factors.get(name) if held else None
            live = [part.trained(name) for part in have]
            folded = None if before is None else self._folded(before, live, p)
            terms, weights = ([folded, *stack], [1.0, *p]) if folded else (stack, p)
            trained = {c: part.trained(name) for part in have for c in part.weights}
            room = self.room(sum(trained.values()), before.rank if before else 0)
            left = held.rest.get(name) if held else None
            factors[name], left = summed_in_parts(
                name, terms, weights, left, room, self.max_rank
            )
            if left is not None:
                rest[name] = left
        state = AdapterState(factors, dense_means(parts), rest=rest)
        return held.merged(state) if held else state

    @abstractmethod
    def _folded(
        self, before: LoraFactors, live: Sequence[int], p: Sequence[float]
    ) -> LoraFactors | None:
        """Return sum_k p_k F_k of a layer; ``live`` is at which rank k trained it."""


class Truncate(ProductRule):
    """Every client goes on from the best approximation at its own rank.

    The rest is lost to it, and with it to the group: cheap, and any client that knows
    LoRA can take part.
    """

    def start(self, held: AdapterState, at: Start) -> AdapterState:
        """Cut the group's product at the client's ranks."""
        return _cut(held, at)

    def _folded(
        self, before: LoraFactors, live: Sequence[int], p: Sequence[float]
    ) -> LoraFactors | None:
        return None


class Both(ProductRule):
    """The strongest directions stay live, the rest is folded: exact, and a warm start.

    Recommended by default, where clients can fold.
    """

    folds = True

    def start(self, held: AdapterState, at: Start) -> AdapterState:
        """Cut the group's product at the client's ranks; fold what is left."""
        rests = {
            name: trailing(found, at.ranks.get(name, 0))
            for name, found in held.factors.items()
        }
        folded = {name: rest for name, rest in rests.items() if rest is not None}
        live = _cut(held, at)
        return AdapterState(live.factors, live.dense, folded)

    def room(self, trained: int, *ranks: int) -> int | None:
        """Return what one round adds up to, or what there was before."""
        if not self.flat or self.max_rank is not None:
            return None
        return max((trained, *ranks))

    def _folded(
        self, before: LoraFactors, live: Sequence[int], p: Sequence[float]
    ) -> LoraFactors | None:
        # Direction j is folded at the clients whose rank is at most j.
        weights = torch.zeros(before.rank, dtype=torch.float64)
        for rank, share in zip(live, p, strict=True):
            weights[rank:] += share
        return damped(before, weights)


class Fold(ProductRule):
    """Everything is folded, and a fresh adapter is trained: FLoRA's way.

    Each round draws other directions, the same for all clients: were they those of the
    round before, the sum of all rounds could never leave their span.
    """

    folds = True

    def start(self, held: AdapterState, at: Start) -> AdapterState:
        """Fold the group's product; draw a fresh adapter at the client's ranks."""
        seed = derive_seed(at.seed, "fold", at.round)
        fresh = {}
        for name, rank in at.adapted.items():
            shape = at.initial.factors[name].shape
            drawn = initial_factors(name, shape, rank, scaling=Scaling(), seed=seed)
            fresh[name] = LoraFactors(drawn.A, drawn.B, at.scale(rank))
        folded = {n: f for n, f in held.factors.items() if bool(f.A.any())}
        return AdapterState(fresh, held.dense, folded)

    def _folded(
        self, before: LoraFactors, live: Sequence[int], p: Sequence[float]
    ) -> LoraFactors | None:
        return before


def summed_in_parts(
    name: str,
    terms: Sequence[LoraFactors],
    weights: Sequence[float],
    rest: Tensor | None = None,
    room: int | None = None,
    max_rank: int | None = None,
) -> tuple[LoraFactors, Tensor | None]:
    """Add weighted products and a rest; return what is handed out, and a new rest.

    What is handed out is in canonical form. The sum is applied to a random vector and
    compared with the sum of its terms applied to that vector, which no wrong scale,
    order or broadcast survives.

    Parameters
    ----------
    name : str
        The layer's name, for messages.
    terms : Sequence[LoraFactors]
        Products of one layer, of shape (m, n).
    weights : Sequence[float]
        One each.
    rest : Tensor, optional
        Shape (m, n), of weight 1.
    room : int, optional
        The rank from which on the sum is rest; ``None`` makes all of it factors.
    max_rank : int, optional
        Lose the smallest directions above it, and log a warning that says how much.

    Raises
    ------
    AdapterError
        If shapes differ, a number is not finite, or the check fails.
    """
    stacked = concatenate(terms, weights)
    exact, left = divided(stacked, rest, min(stacked.shape) if room is None else room)
    probe = torch.randn(exact.shape[1], 1, generator=torch.Generator().manual_seed(0))
    wanted = [p * _applied(f, probe) for f, p in zip(terms, weights, strict=True)]
    wanted += [] if rest is None else [rest.double() @ probe.double()]
    found = _applied(exact, probe)
    found += 0 if left is None else left.double() @ probe.double()
    error = float((found - torch.stack(wanted).sum(0)).norm())
    size = float(torch.stack(wanted).norm(dim=1).sum())
    if not error <= _TOLERANCE * max(size, 1e-12):
        raise AdapterError(
            f"layer {name!r}: the aggregate is off by {error:.1e} of {size:.1e}; "
            "please report this with the clients' ranks and scales"
        )
    if max_rank is None or exact.rank <= max_rank:
        return exact, left
    kept = LoraFactors(exact.A[:max_rank], exact.B[:, :max_rank])
    _tell_loss(name, exact, max_rank)
    return kept, left


def weighted_rest(
    name: str, states: Sequence[AdapterState], weights: Sequence[float]
) -> Tensor | None:
    """Return the weighted sum of a layer's rests; ``None`` where nobody has one."""
    total: Tensor | None = None
    for state, weight in zip(states, weights, strict=True):
        left = state.rest.get(name)
        if left is not None:
            term = weight * left.double()
            total = term if total is None else total.add_(term)
    return None if total is None else total.float()


def _cut(held: AdapterState, at: Start) -> AdapterState:
    known = {n: r for n, r in at.adapted.items() if n in held.factors}
    factors = {
        name: leading(held.factors[name], rank, scale=at.scale(rank))
        for name, rank in known.items()
    }
    # A layer that nobody in the group had yet begins as everything began.
    new = {name: rank for name, rank in at.adapted.items() if name not in known}
    start = Start(at.initial, new, at.scale).nested(held)
    return AdapterState({**factors, **start.factors}, held.dense)


def _applied(factors: LoraFactors, x: Tensor) -> Tensor:
    A, B = factors.A.detach().double(), factors.B.detach().double()
    return factors.scale * (B @ (A @ x.double()))


def _tell_loss(name: str, exact: LoraFactors, rank: int) -> None:
    # In canonical form a row of A has the squared norm of its singular value.
    energy = exact.A.double().norm(dim=1) ** 4
    lost = float((energy[rank:].sum() / energy.sum()).sqrt())
    message = "layer %s: its aggregate of rank %d is cut to %d, which loses %.1f %%"
    log(WARNING, message, name, exact.rank, rank, 100 * lost)
