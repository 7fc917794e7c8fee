# SPDX-License-Identifier: Apache-2.0
"""A run's defence, before a trunk that is elsewhere: of prompts, too."""

from __future__ import annotations

from atlas_flwr.config import RunConfig
from atlas_flwr.errors import ConfigError
from atlas_flwr.privacy.defences.base import Defence, Joined
from atlas_flwr.remedies.wire_defence import defence_of, guarded
from atlas_flwr.split import SplitModel, SplitPlan
from atlas_flwr.trunk.transports.access import Access
from atlas_flwr.types import TrunkClient

__all__ = ["check_defended", "check_kept", "defended", "told_of_defence"]


def check_defended(config: RunConfig, plan: SplitPlan, where: str | Access) -> None:
    """Refuse a cut that lets a defended run's answers be read.

    Raises
    ------
    ConfigError
        If the trunk is elsewhere, and would end the model.
    """
    found = str(defence_of(config))
    if found != "none" and isinstance(where, Access) and plan.tail is None:
        raise ConfigError(
            [
                f"cut {plan} with --trunk-access: the run has defence={found!r}, and a "
                "trunk that ends the model reads every answer; take a cut with a tail, "
                "--cut 2/1 for one"
            ]
        )


def check_kept(model: SplitModel, config: RunConfig, where: str | Access) -> None:
    """Refuse to send a prompt anew for every token, each time with other noise.

    Raises
    ------
    ConfigError
        If the trunk is elsewhere, the defence draws, and the model keeps no cache.
    """
    found = defence_of(config)
    if found.draws and isinstance(where, Access) and not model.keeps_cache:
        raise ConfigError(
            [
                f"defence={str(found)!r} with a {model.config.model_type} model, which "
                "keeps no cache: each token would send the whole text again, and the "
                "mean of so many noises is none; leave out --trunk-access"
            ]
        )


def defended(trunk: TrunkClient, config: RunConfig, where: str | Access) -> TrunkClient:
    """Let what changes the wire stand before a trunk that is elsewhere.

    Parameters
    ----------
    trunk : TrunkClient
        The session.
    config : RunConfig
        The run's.
    where : str or Access
        Where the trunk is; from one on this machine nothing has to be hidden.
    """
    found = defence_of(config)
    if found.changes_wire and isinstance(where, Access):
        return guarded(trunk, found)
    return trunk


def told_of_defence(config: RunConfig, where: str | Access) -> list[str]:
    """Say what of a run's defence covers prompts, where they leave this machine."""
    found = defence_of(config)
    if str(found) == "none" or not isinstance(where, Access):
        return []
    parts = found.parts if isinstance(found, Joined) else (found,)
    return [_on(part) if part.changes_wire else _off(part) for part in parts]


def _on(part: Defence) -> str:
    again = ", so that an answer may differ each time" if part.draws else ""
    return f"defence {part} of the run changes what leaves here, prompts too{again}"


def _off(part: Defence) -> str:
    return (
        f"WARNING: defence {part} of the run is one of texts that are learned, and "
        "covers no prompt: yours leave here as they are"
    )
