# SPDX-License-Identifier: Apache-2.0
"""Who learns with whom: fingerprints, clusters, their quality."""

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.clustering.agreement import Quality, quality
    from atlas_flwr.clustering.clusters import Clusters, cluster
    from atlas_flwr.clustering.drift import Drift, detect_drift
    from atlas_flwr.clustering.gaussian import gaussian_delta, gaussian_sigma, noised
    from atlas_flwr.clustering.matching import match_labels
    from atlas_flwr.clustering.membership import memberships
    from atlas_flwr.clustering.methods import METHODS
    from atlas_flwr.clustering.parts import fingerprint_parts, signed_bytes
    from atlas_flwr.clustering.shares import masked, unmasked_sum, with_masks
    from atlas_flwr.clustering.sketch import fingerprint, project
    from atlas_flwr.clustering.stability import subsample_agreement

__all__ = [
    "METHODS",
    "Clusters",
    "Drift",
    "Quality",
    "cluster",
    "detect_drift",
    "fingerprint",
    "fingerprint_parts",
    "gaussian_delta",
    "gaussian_sigma",
    "masked",
    "match_labels",
    "memberships",
    "noised",
    "project",
    "quality",
    "signed_bytes",
    "subsample_agreement",
    "unmasked_sum",
    "with_masks",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "METHODS": "methods",
        "Clusters": "clusters",
        "Drift": "drift",
        "Quality": "agreement",
        "cluster": "clusters",
        "detect_drift": "drift",
        "fingerprint": "sketch",
        "fingerprint_parts": "parts",
        "gaussian_delta": "gaussian",
        "gaussian_sigma": "gaussian",
        "masked": "shares",
        "match_labels": "matching",
        "memberships": "membership",
        "noised": "gaussian",
        "project": "sketch",
        "quality": "agreement",
        "signed_bytes": "parts",
        "subsample_agreement": "stability",
        "unmasked_sum": "shares",
        "with_masks": "shares",
    },
)
