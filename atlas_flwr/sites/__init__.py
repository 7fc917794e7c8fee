# SPDX-License-Identifier: Apache-2.0
"""Deployments of several machines: described in one file, sent out as folders."""

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.sites.description import Link, Node, Site, Trunk
    from atlas_flwr.sites.kits import write_kits
    from atlas_flwr.sites.reading import read_site

__all__ = ["Link", "Node", "Site", "Trunk", "read_site", "write_kits"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "Link": "description",
        "Node": "description",
        "Site": "description",
        "Trunk": "description",
        "read_site": "reading",
        "write_kits": "kits",
    },
)
