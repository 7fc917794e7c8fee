# SPDX-License-Identifier: Apache-2.0
"""Who learns with whom: fingerprints, clusters, their quality."""

from atlas_flwr._lazy import attach

__all__ = [
    "Clusters",
    "Quality",
    "cluster",
    "fingerprint",
    "project",
    "quality",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "Clusters": "clusters",
        "Quality": "agreement",
        "cluster": "clusters",
        "fingerprint": "sketch",
        "project": "sketch",
        "quality": "agreement",
    },
)
