# SPDX-License-Identifier: Apache-2.0
"""Telling a client's task and its balance of labels by the adapters it sends back."""

from __future__ import annotations

from atlas_flwr.privacy.adversary import Adversary, Who
from atlas_flwr.privacy.attacks.fingerprint import Fingerprint

__all__ = ["Update"]


class Update(Fingerprint):
    """Compares what a client's round has changed with what made-up clients' changes.

    These train as it does, from the adapters that it was sent, each on public texts of
    one task in some balance of labels (after Melis et al., arXiv 1805.04049). Told as
    by fingerprints; the mean of all shadows is what any training would change.
    """

    name = "update"
    adversary = Adversary(Who.PASSIVE_SERVER, labels=True)
    about = "clients trained on public texts: whose change of adapters is most like it?"
