# SPDX-License-Identifier: Apache-2.0
"""Telling members by adapters of the attacker's own: the likelihood ratio attack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_flwr.privacy.attacks.base import MemberAttack

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.privacy.attacks.base import Suspects

__all__ = ["MembershipShadow"]

LEAST = 1e-6  # a loss, or a variance, below is not told from this one


class MembershipShadow(MemberAttack):
    """Trains shadow adapters on halves of the texts in question (LiRA, online).

    Each text is in half of the shadows. Its losses under those that had it, and under
    those that had not, are two normal distributions: the ratio of their likelihoods at
    the loss under the exported adapters is the score (Carlini et al., arXiv
    2112.03570). As there for few shadows, the two variances are one for all texts, and
    what is compared is the logit of the probability exp(-loss). It knows how the run
    was trained: steps, rows, rates and ranks.
    """

    name = "membership-shadow"
    about = "a likelihood ratio by adapters trained on halves of the texts in question"
    shadows = 4

    def scores(self, suspects: Suspects) -> Tensor:
        """Return the logarithm of the ratio."""
        import torch

        seen, own, other = _logit(suspects.losses), suspects.within, ~suspects.within
        shadows = _logit(suspects.shadows)
        ratio = torch.zeros_like(seen)
        for group, sign in ((own, 1), (other, -1)):
            count = group.sum(0)
            mean = (shadows * group).sum(0) / count
            off = (shadows - mean).square() * group
            variance = off.sum() / (group.sum() - len(mean))
            variance = variance.clamp(min=LEAST)  # of texts known by heart it is 0
            ratio -= sign * ((seen - mean).square() / variance + variance.log()) / 2
        return ratio


def _logit(losses: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of the probability p = exp(-loss)."""
    import torch

    losses = losses.double().clamp(min=LEAST)
    return -losses - torch.log(-torch.expm1(-losses))
