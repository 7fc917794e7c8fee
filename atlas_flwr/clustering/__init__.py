# SPDX-License-Identifier: Apache-2.0
"""Who learns with whom: fingerprints, clusters, their quality."""

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.clustering.agreement import Quality, quality
    from atlas_flwr.clustering.clusters import Clusters, cluster
    from atlas_flwr.clustering.sketch import fingerprint, project

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
