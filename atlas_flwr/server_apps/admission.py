# SPDX-License-Identifier: Apache-2.0
"""Which clients a run cannot take: their own memory or cut leaves them nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from atlas_flwr.config import RunConfig
from atlas_flwr.errors import PlanError
from atlas_flwr.protocol.profile import Profile
from atlas_flwr.server_apps.assignment import DeviceRule
from atlas_flwr.server_apps.build import needs_trunk
from atlas_flwr.train.weights import ModelFiles

__all__ = ["Admission"]


@dataclass
class Admission:
    """Refuses a client by what it says of itself, before anybody waits for it.

    One node's mistake is nobody else's: without this its cut or memory would end the
    run when it is given its part.

    Attributes
    ----------
    config : RunConfig
        The run's. Its own devices and cuts were checked as it began.
    files : ModelFiles
        Of its model.
    """

    config: RunConfig
    files: ModelFiles

    def __call__(self, profile: Profile) -> None:
        """Refuse a client that could be given nothing.

        Raises
        ------
        PlanError
            If its cut is impossible for this model, or for its adapter's sharers.
        BudgetError
            If its memory is too small for anything.
        """
        if not needs_trunk(self.config):
            return
        if (profile.memory, profile.cut) in self.config.kinds:
            return
        if self.config.server_adapters == "shared" and profile.cut != self.config.cut:
            raise PlanError(
                f"cut={profile.cut!r} (node config): server-adapters='shared' gives "
                f"all clients the run's cut={self.config.cut!r}; leave it out there"
            )
        self._rule(profile, {})

    @cached_property
    def _rule(self) -> DeviceRule:
        # Made where a client needs it: it reads every task's texts.
        return DeviceRule.of(self.config, self.files.outline(), self.files.dtype)
