# SPDX-License-Identifier: Apache-2.0
"""A round's trunk: dialled, checked where the server asks for that, and told of."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ConfigRecord
from torch import nn

from atlas_flwr.client_apps.identity import Identity
from atlas_flwr.config import RunConfig
from atlas_flwr.protocol import keys
from atlas_flwr.protocol.computed import computed_record
from atlas_flwr.protocol.doors import doors_of
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import SessionSpec
from atlas_flwr.trunk.hosts.chain import ChainTrunk, codecs_of, connect_all
from atlas_flwr.trunk.hosts.checking import CheckedTrunk
from atlas_flwr.trunk.hosts.direct import DirectChain
from atlas_flwr.trunk.hosts.own_trunk import OwnTrunk
from atlas_flwr.trunk.passing import standing_in
from atlas_flwr.types import TrunkClient
from atlas_flwr.wire import ByteMeter

__all__ = ["checked_trunk", "crossed_bytes", "dialled", "told_of_trunk"]


def dialled(
    entries: Mapping[str, object], config: RunConfig, me: Identity
) -> TrunkClient:
    """Reach the client's session, in one place or in several.

    Parameters
    ----------
    entries : Mapping[str, object]
        The message's configuration, which says where.
    config : RunConfig
        The run's.
    me : Identity
        The client, with the certificate that it shows.
    """
    return connect_all(
        doors_of(entries),
        config.link_codec,
        spares_padding=True,
        timeout=config.peer_timeout,
        shown=me.shown,
        chain=DirectChain if config.peer_chains == "direct" else ChainTrunk,
    )


def checked_trunk(
    trunk: TrunkClient, files: ModelFiles, spec: SessionSpec
) -> CheckedTrunk:
    """Return a trunk whose answers the client compares with its own computation.

    Parameters
    ----------
    trunk : TrunkClient
        As it was dialled.
    files : ModelFiles
        Hold the trunk's blocks, too.
    spec : SessionSpec
        How the session was opened.
    """
    outline = files.outline()
    own = OwnTrunk(files.trunk, spec, outline.num_layers, outline.block_of)
    return CheckedTrunk(trunk, own)


def crossed_bytes(model: nn.Module) -> dict[str, int]:
    """Return the bytes that a client sent over its cut and received, as metrics."""
    trunk = getattr(model, "trunk", None)
    meter = getattr(trunk, "meter", None) or ByteMeter()
    return {"cut-bytes-up": meter.total_up, "cut-bytes-down": meter.total_down}


def told_of_trunk(model: nn.Module) -> dict[str, ConfigRecord]:
    """Return what a reply says of the trunk: its codecs, and what a check found."""
    trunk, told = getattr(model, "trunk", None), {}
    codecs = "" if trunk is None else codecs_of(trunk)
    if codecs:  # Flower counts no bytes of an empty text
        told[keys.LINK] = ConfigRecord({keys.LINK_CODEC: codecs})
    checked = standing_in(trunk, CheckedTrunk)
    if checked is not None:
        told[keys.COMPUTED] = computed_record(checked.computed())
    return told
