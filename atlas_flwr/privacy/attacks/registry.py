# SPDX-License-Identifier: Apache-2.0
"""All attacks by name: a new one gets a line here.

Those are here that read what a run has left. Two that need more are in no registry, and
in no run, but in tests and benchmarks: ``hijack.py`` takes the trunk's place while a
client trains, and ``partner.py`` takes a member's place in a cluster.
"""

from __future__ import annotations

from collections.abc import Mapping

from atlas_flwr.privacy.attacks.base import (
    Attack,
    MemberAttack,
    SketchAttack,
    TaskAttack,
)
from atlas_flwr.privacy.attacks.bisr import Bisr
from atlas_flwr.privacy.attacks.fingerprint import Fingerprint
from atlas_flwr.privacy.attacks.gradient_matching import GradientMatching
from atlas_flwr.privacy.attacks.inverter import Inverter
from atlas_flwr.privacy.attacks.label_clusters import LabelClusters
from atlas_flwr.privacy.attacks.label_completion import LabelCompletion
from atlas_flwr.privacy.attacks.label_gradient import LabelGradient
from atlas_flwr.privacy.attacks.linear import Linear
from atlas_flwr.privacy.attacks.membership_loss import MembershipLoss
from atlas_flwr.privacy.attacks.membership_reference import MembershipReference
from atlas_flwr.privacy.attacks.membership_shadow import MembershipShadow
from atlas_flwr.privacy.attacks.optimised import Optimised
from atlas_flwr.privacy.attacks.restored import Restored
from atlas_flwr.privacy.attacks.traffic import Traffic
from atlas_flwr.privacy.attacks.update import Update
from atlas_flwr.privacy.attacks.verified import Verified
from atlas_flwr.privacy.attacks.writer import Writer

__all__ = ["ATTACKS", "MEMBERSHIP", "OF_SKETCHES", "OF_TASKS", "OF_UPDATES"]

ATTACKS: Mapping[str, Attack] = {
    attack.name: attack
    for attack in (
        Linear(),
        Verified(),
        Inverter(),
        Optimised(),
        Bisr(),
        Restored(),
        Writer(),
        LabelGradient(),
        LabelClusters(),
        LabelCompletion(),
        GradientMatching(),
    )
}

# On the adapters that a run has exported, not on what crossed.
MEMBERSHIP: Mapping[str, MemberAttack] = {
    attack.name: attack
    for attack in (MembershipLoss(), MembershipReference(), MembershipShadow())
}

# On the sizes of what crossed alone.
OF_TASKS: Mapping[str, TaskAttack] = {attack.name: attack for attack in (Traffic(),)}

# On the fingerprints that clients have sent, which the checkpoint keeps.
OF_SKETCHES: Mapping[str, SketchAttack] = {a.name: a for a in (Fingerprint(),)}

# On the adapters that clients have sent back, which a recording keeps.
OF_UPDATES: Mapping[str, SketchAttack] = {a.name: a for a in (Update(),)}
