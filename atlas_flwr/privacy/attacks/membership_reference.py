# SPDX-License-Identifier: Apache-2.0
"""Telling members by how much training has lowered their loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_flwr.privacy.attacks.base import MemberAttack

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.privacy.attacks.base import Suspects

__all__ = ["MembershipReference"]


class MembershipReference(MemberAttack):
    """Compares with the public model, for which all texts are strange.

    Some texts are easy for everybody; the loss of a model that never saw them says
    which (Watson et al., arXiv 2111.08440). The public model stands for the shadow
    models that others train.
    """

    name = "membership-reference"
    about = "texts whose loss has fallen most from the public model's were trained on"

    def scores(self, suspects: Suspects) -> Tensor:
        """Return by how much each has fallen."""
        return suspects.untrained - suspects.losses
