# SPDX-License-Identifier: Apache-2.0
"""The configuration of a trunk that is a process of its own, ``atlas-flwr trunk``."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from atlas_flwr.config.loading import Value, load_config
from atlas_flwr.config.schema import RunConfig
from atlas_flwr.errors import ConfigError

__all__ = ["load_lone_trunk"]


def load_lone_trunk(
    run_config: Mapping[str, Value],
    known: Mapping[str, Collection[str]],
    listen: str,
    advertise: str,
) -> RunConfig:
    """Check the config of the run that a trunk is for, as the trunk reads it.

    Parameters
    ----------
    run_config : Mapping[str, bool | int | float | str]
        The run's; how its clients reach a trunk is left out.
    known : Mapping[str, Collection[str]]
        See :func:`~atlas_flwr.config.load_config`.
    listen, advertise : str
        Where it listens, and what is dialled.

    Raises
    ------
    ConfigError
        With every problem at once.
    """
    # What peers lend one another is nothing to a trunk that one of them serves.
    keys = {k: v for k, v in run_config.items() if not k.startswith("peer-")}
    place: dict[str, Value] = {
        "trunk": "grpc",
        "trunk-listen": listen,
        "trunk-advertise": advertise,
    }
    config = load_config({**keys, **place}, known)
    if config.trunk_client_ca:
        raise ConfigError(["trunk-client-ca is a run's; here it is --client-ca FILE"])
    if config.unsplit:
        raise ConfigError([f"{config.unsplit}, and there is no trunk to serve"])
    return config
