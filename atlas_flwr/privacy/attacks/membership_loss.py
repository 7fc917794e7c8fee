# SPDX-License-Identifier: Apache-2.0
"""Telling members by their loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_flwr.privacy.attacks.base import MemberAttack

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.privacy.attacks.base import Suspects

__all__ = ["MembershipLoss"]


class MembershipLoss(MemberAttack):
    """Takes texts of low loss for members (Yeom et al., arXiv 1709.01604)."""

    name = "membership-loss"
    about = "texts of low loss under the exported adapters were trained on"

    def scores(self, suspects: Suspects) -> Tensor:
        """Return minus the loss."""
        return -suspects.losses
