# SPDX-License-Identifier: Apache-2.0
"""The run configs of a site's folders: the user's keys, and what its machines add."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from atlas_flwr.config import load_config
from atlas_flwr.config.lone_trunk import load_lone_trunk
from atlas_flwr.config.reach_rules import beyond_supernodes
from atlas_flwr.config.trunk_rules import TRUNK_ALONE
from atlas_flwr.errors import ConfigError
from atlas_flwr.sites.description import Plain, Site, Trunk, joined
from atlas_flwr.wire.codecs import CODEC_CHOICES

__all__ = ["WRITTEN", "for_run", "for_trunk", "refusals"]

# Keys that are not the user's to give, and what of a site they follow from.
WRITTEN = {
    "trunk-access": "trunk:",
    "trunk-advertise": "link.host with link.trunk-port",
    "trunk-client-ca": "link.trunk-mutual",
    "trunk-listen": "link.listen with link.trunk-port",
}


def for_run(site: Site) -> Mapping[str, Plain]:
    """Return what a run is started with."""
    if site.trunk:
        own = {k: v for k, v in site.config.items() if k not in TRUNK_ALONE}
        # Relative to where the SuperLink was started, which is its folder.
        return {**own, "trunk-access": "access.json"}
    asks = {"trunk-client-ca": "ca.crt"} if site.mutual else {}
    if site.link.trunk_port is None:
        return {**site.config, **asks}
    return {
        **site.config,
        **asks,
        "trunk-listen": joined(site.link.listen, site.link.trunk_port),
        "trunk-advertise": joined(site.link.host, site.link.trunk_port),
    }


def for_trunk(site: Site) -> Mapping[str, Plain]:
    """Return what a trunk on a machine of its own is started with."""
    return site.config


def refusals(site: Site) -> Iterator[str]:
    """Yield why the run, or the trunk, would refuse what it is started with."""
    try:
        config = load_config(for_run(site), {"codec": CODEC_CHOICES})
    except ConfigError as error:
        yield from (f"run.config: {_traced(text)}" for text in error.problems)
    else:
        yield from (f"run.config: {p.sentence}" for p in beyond_supernodes(config))
    if site.trunk:
        yield from _trunk_refusals(site, site.trunk)


def _trunk_refusals(site: Site, trunk: Trunk) -> Iterator[str]:
    places = joined(trunk.listen, trunk.port), joined(trunk.host, trunk.port)
    try:
        load_lone_trunk(for_trunk(site), {"codec": CODEC_CHOICES}, *places)
    except ConfigError as error:
        yield from (f"run.config, for trunk: {text}" for text in error.problems)


def _traced(sentence: str) -> str:
    """Say of keys that the user has not given where they come from."""
    found = (f"{key} is {of}" for key, of in WRITTEN.items() if key in sentence)
    told = "; ".join(found)
    return f"{sentence} ({told})" if told else sentence
