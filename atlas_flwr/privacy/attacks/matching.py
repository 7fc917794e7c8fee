# SPDX-License-Identifier: Apache-2.0
"""Labels of a text's places, found by the gradient that the public tail would send.

Matching gradients is DLG's (arXiv 1906.08935) and TAG's (2103.06819), which optimise
text and labels; a u-shaped server has what its tail was given, so that only labels are
left, and they can be tried. A text's gradient at the tail's cut is a sum over its
labels. In a causal tail a place's label moves no later place: from the last place to
the first, each is the one whose gradient is what is left after those behind it.

With f the last hidden states, W the LM head, p its probabilities and y the label of a
place, the loss's gradient by f is s (p W - W[y]), s one over a batch's labels. K is the
derivative of f by the tail's input at the same place.

Shapes: T tokens, D width, V tokens of the vocabulary, C candidates of a place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from atlas_flwr.privacy.defences.base import Defence
from atlas_flwr.privacy.defences.scale import LONGEST, usual_size
from atlas_flwr.privacy.knowledge import Knowledge
from atlas_flwr.privacy.observation import Observation
from atlas_flwr.split.passes import run_blocks
from atlas_flwr.split.split_cache import part_cache

__all__ = ["Place", "matched"]

CANDIDATES = 128  # by the gradient, and as many by the public model
CUT = 0.75  # of the longest gradient that a defence sends: longer ones may be cut
FEW = 3  # places that tell how many labels a batch has
LEAST = 1e-3  # of the largest gradient: what is less tells nothing


class Place(NamedTuple):
    """What a gradient tells of one place.

    Attributes
    ----------
    place : int
        Of the token that is told, which the place before predicts.
    tokens : Tensor
        Shape (C,): candidates.
    costs : Tensor
        Shape (C,): how unlikely each is; under noise, by the public model, too.
    learned : bool
        Whether one of them is likelier than that nothing was learned there.
    """

    place: int
    tokens: Tensor
    costs: Tensor
    learned: bool


@dataclass
class _Tail:
    """The public tail on what it was given."""

    seen: Observation
    part: Any
    given: Tensor
    states: Tensor
    rows: Tensor
    odds: Tensor

    @classmethod
    def of(cls, knowledge: Knowledge, seen: Observation, answer: Tensor) -> _Tail:
        part = knowledge.model.tail(seen)
        given = answer[None].clone().requires_grad_()
        states = run_blocks(part.base_model, inputs_embeds=given)[0]
        lm_head = part.get_output_embeddings()
        odds = lm_head(states.detach()).float().log_softmax(-1)
        return cls(seen, part, given, states, lm_head.weight.detach(), odds)

    def wanted(self, place: int, tokens: Tensor) -> Tensor:
        """Return p W - W[y] of candidates (C,) at a place, (C, D)."""
        return self.odds[place].exp() @ self.rows - self.rows[tokens]

    def everywhere(self, place: int, wanted: Tensor) -> Tensor:
        """Return what a gradient (D,) by a place's last state gives by all inputs."""
        (found,) = torch.autograd.grad(
            self.states[place], self.given, wanted, retain_graph=True
        )
        return found[0]

    def here(self, place: int) -> tuple[Tensor, Tensor]:
        """Return a place's last state (D,) and its input (D,), which can be derived."""
        before = self.given[:, :place].detach()
        cache = part_cache(self.part) if place else None
        if place:
            run_blocks(self.part.base_model, cache, inputs_embeds=before)
        x = self.given[0, place].detach().clone().requires_grad_()
        state = run_blocks(self.part.base_model, cache, inputs_embeds=x[None, None])
        return state[0, -1], x


@torch.enable_grad()
def matched(knowledge: Knowledge, seen: Observation) -> list[Place]:
    """Try labels of all places of a text, the last place first.

    Parameters
    ----------
    knowledge : Knowledge
        For the tail, and the defence.
    seen : Observation
        With an answer and a gradient.

    Returns
    -------
    list[Place]
        Of places whose gradient tells anything.

    Raises
    ------
    ValueError
        If the observation lacks one of the two.
    """
    if seen.answer is None or seen.gradient is None:
        raise ValueError(
            "labels are tried by an answer and the gradient at it, and this text "
            "lacks one of them: ask the attack's unfit() first"
        )
    sent, sizes = seen.gradient, seen.gradient.norm(dim=1)
    defence = knowledge.defence
    usual = _usual(defence, knowledge.model.together(seen))
    with sdpa_kernel(SDPBackend.MATH):
        tail = _Tail.of(knowledge, seen, seen.answer)
        share = _share(tail, sent, usual, cut=defence.draws)
        found: list[Place] = []
        told = torch.zeros_like(sent)
        for place in reversed(range(len(sent) - 1)):
            left = sent[place] - told[place]
            if left.norm() < LEAST * sizes.max():
                continue
            tokens, wanted, effects = _candidates(tail, place, left)
            effects = torch.cat([effects, torch.zeros_like(left)[None]])  # of nothing
            expected = told[place] + share * effects
            if defence.draws:
                expected = defence.activations(expected, None, usual)
            *_, nothing = costs = defence.unlikeliness(sent[place], expected, usual)
            costs = costs[:-1].detach()
            # Of many wrong tokens the best seems likelier than nothing, under noise.
            chance = 2 * math.log(len(costs)) if defence.draws else 0.0
            learned = bool(costs.min() + chance < nothing)
            if defence.draws:
                costs = costs - tail.odds[place][tokens]
            found.append(Place(place + 1, tokens, costs, learned))
            if learned:
                told += share * tail.everywhere(place, wanted[costs.argmin()])
    return found


def _candidates(tail: _Tail, place: int, left: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens (C,), their gradients by the last state, and by the input."""
    state, x = tail.here(place)
    # K times what is left, by differentiating a gradient that is linear in this zero.
    zero = torch.zeros_like(state).requires_grad_()
    (back,) = torch.autograd.grad(state, x, zero, create_graph=True)
    (ahead,) = torch.autograd.grad(back, zero, left, retain_graph=True)
    count = min(CANDIDATES, len(tail.rows))
    by_gradient = (-tail.rows @ ahead).topk(count).indices
    by_model = tail.odds[place].topk(count).indices
    tokens = torch.cat([by_gradient, by_model]).unique()
    wanted = tail.wanted(place, tokens)
    (effects,) = torch.autograd.grad(state, x, wanted, is_grads_batched=True)
    return tokens, wanted, effects


def _share(tail: _Tail, sent: Tensor, usual: float, *, cut: bool) -> float:
    """Return one over a batch's labels: by the largest gradients that are not cut."""
    sizes = sent.norm(dim=1)
    if cut:
        longest = LONGEST * usual * sent.shape[1] ** 0.5
        sizes = torch.where(sizes < CUT * longest, sizes, 0)
    order = sizes.argsort(descending=True)
    counts = []
    for place in order[:FEW].tolist():
        _, _, effects = _candidates(tail, place, sent[place])
        alike = torch.cosine_similarity(effects, sent[place][None], dim=1)
        best = effects[alike.argmax()]
        counts.append(best.square().sum() / (best @ sent[place]).clamp(min=1e-20))
    return 1 / max(round(float(torch.stack(counts).median())), 1)


def _usual(defence: Defence, batch: Sequence[Observation]) -> float:
    """Return how large a batch's usual gradient was, before a defence added to it."""
    drawn = torch.Generator().manual_seed(0)
    sent = torch.cat([o.gradient for o in batch if o.gradient is not None])
    ones = torch.ones_like(sent)
    return usual_size(sent) / usual_size(defence.activations(ones, drawn, 1.0))
