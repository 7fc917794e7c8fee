# SPDX-License-Identifier: Apache-2.0
"""Whose certificates ``atlas-flwr trunk`` asks for, and what its owner shows."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_flwr.errors import ConfigError

if TYPE_CHECKING:
    from atlas_flwr.trunk.credentials import Credentials
    from atlas_flwr.trunk.transports.access import Access

__all__ = ["ACCESS", "Gate", "gate_of", "kept_access"]

ACCESS = "access.json"


@dataclass(frozen=True)
class Gate:
    """Whose certificates a trunk asks for.

    Attributes
    ----------
    authorities : bytes
        PEM.
    owner : Credentials
        What the ServerApp shows.
    """

    authorities: bytes
    owner: Credentials


def gate_of(given: argparse.Namespace) -> Gate | None:
    """Read what ``--client-ca`` and its like name, before anything is loaded.

    Raises
    ------
    ConfigError
        If something is missing, or is no use.
    """
    from atlas_flwr.trunk.credentials import Credentials, read_authorities

    paths, names = (given.owner_cert, given.owner_key), ("--owner-cert", "--owner-key")
    if given.client_ca is None:
        if any(paths):
            raise ConfigError(["--owner-cert and --owner-key are for --client-ca"])
        return None
    authorities = read_authorities(given.client_ca)
    kept = kept_access(given.folder / ACCESS)
    owner = kept.shown if kept else None
    if any(paths):
        owner = Credentials.read(*paths, names)
    if owner is None:
        raise ConfigError(
            [
                "--client-ca: the ServerApp must show a certificate as clients do, and "
                f"there is none in {given.folder / ACCESS}; give --owner-cert and "
                "--owner-key, which go into that file"
            ]
        )
    try:
        owner.check(datetime.now(UTC), authorities)
    except ValueError as error:
        place = "--owner-cert" if any(paths) else str(given.folder / ACCESS)
        told = f"{place}: {error}; clients show one of --client-ca {given.client_ca}"
        raise ConfigError([told]) from None
    return Gate(authorities, owner)


def kept_access(path: Path) -> Access | None:
    """Read the access that a folder keeps, if it keeps one already."""
    from atlas_flwr.trunk.transports.access import Access

    return Access.read(path, checked=False) if path.exists() else None
