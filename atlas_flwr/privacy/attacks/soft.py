# SPDX-License-Identifier: Apache-2.0
"""Texts as distributions over tokens, optimised until their crossing is what came.

Every place is a mixture of candidates' embeddings, and begins as a reader sees it. The
public head is run on the mixtures, and their weights follow the gradient of how
unlikely that makes what was received, all places together: a model that reads both ways
needs no order.

Shapes: T tokens, C candidates of a place, D width at the cut, E of embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vmap

from atlas_flwr.privacy.knowledge import Knowledge
from atlas_flwr.privacy.observation import Observation
from atlas_flwr.split.passes import run_blocks

__all__ = ["optimised"]

STEPS, RATE = 100, 0.3
EVERY = 5  # steps after which the likeliest tokens are tried as they are
PATIENCE = 5  # tries of one and the same text after which it is settled
CANDIDATES = 64
SAME = 1e-3  # mean relative distance at which a text is what was sent


@torch.enable_grad()
def optimised(knowledge: Knowledge, seen: Observation, scores: Tensor) -> Tensor:
    """Optimise a text.

    Parameters
    ----------
    knowledge : Knowledge
        For head and defence.
    seen : Observation
        What was received.
    scores : Tensor
        Shape (T, V): log-probabilities of tokens, by who has read it before.

    Returns
    -------
    Tensor
        Shape (T,): of all texts that were tried the likeliest.
    """
    found = scores.topk(min(CANDIDATES, scores.shape[1]))
    tokens, prior = found.indices, found.values.log_softmax(1)
    head = knowledge.model.head(seen)
    rows = head.get_input_embeddings()(tokens).detach()
    weights = prior.clone().requires_grad_()
    stepper = torch.optim.Adam([weights], RATE)
    tried: dict[tuple[int, ...], float] = {}
    last: list[tuple[int, ...]] = []
    for step in range(STEPS):
        if step % EVERY == 0:
            best = weights.detach().argmax(1)
            text = tuple(tokens.gather(1, best[:, None])[:, 0].tolist())
            last.append(text)
            if text not in tried:
                tried[text] = _unlikeliness(knowledge, seen, torch.tensor(text))
                if knowledge.defence.draws:
                    tried[text] -= float(prior.gather(1, best[:, None]).sum())
            same = not knowledge.defence.draws and tried[text] < SAME
            if same or last[-PATIENCE:] == [text] * PATIENCE:
                break
        share = weights.softmax(1)
        mixed = (share[:, :, None] * rows).sum(1)
        hidden = run_blocks(head, inputs_embeds=mixed[None])[0].float()
        sent = knowledge.defence.activations(hidden, None, knowledge.scale)
        off = _costs(knowledge, seen, sent)
        loss = off.mean()
        if knowledge.defence.draws:
            loss = off.sum() - (share * prior).sum()
        stepper.zero_grad()
        loss.backward()
        stepper.step()
    return torch.tensor(min(tried, key=lambda text: tried[text]))


def _costs(knowledge: Knowledge, seen: Observation, sent: Tensor) -> Tensor:
    """Return how unlikely each place (T,) is to give what was received."""

    def cost(received: Tensor, one: Tensor) -> Tensor:
        judge = knowledge.defence.unlikeliness
        return judge(received, one[None], knowledge.scale)[0]

    costs: Tensor = vmap(cost)(seen.hidden, sent)
    return costs


@torch.no_grad()
def _unlikeliness(knowledge: Knowledge, seen: Observation, text: Tensor) -> float:
    """Return how unlikely a text makes what was received; without noise, how far."""
    hidden = knowledge.model.crossing(seen, text[None])[0].float()
    costs = _costs(knowledge, seen, knowledge.crossed(hidden, None))
    return float(costs.sum() if knowledge.defence.draws else costs.mean())
