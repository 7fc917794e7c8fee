# SPDX-License-Identifier: Apache-2.0
"""A session for a model that is asked now and then: it outlives its trunk's patience.

A trunk forgets sessions that are idle for long (:class:`~atlas_flwr.trunk.Limits`). One
that only answers has learned nothing that could be lost: its adapters are here, and its
texts are sent again (:class:`~atlas_flwr.split.split_cache.SplitCache`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from atlas_flwr.errors import SessionError
from atlas_flwr.trunk import FramedTrunk
from atlas_flwr.trunk.passing import PassingTrunk
from atlas_flwr.types import Continuation, LossReply, TrunkCall, TrunkClient

__all__ = ["LastingTrunk"]

T = TypeVar("T")


@dataclass
class LastingTrunk(PassingTrunk):
    """Open a session anew where the trunk has forgotten it; for answers alone.

    Parameters
    ----------
    trunk : FramedTrunk
        The session of now.
    reopen : Callable[[], FramedTrunk]
        Opens another, with the same adapters.
    """

    trunk: FramedTrunk
    reopen: Callable[[], FramedTrunk]

    def forward(self, call: TrunkCall) -> Tensor:
        """Run the trunk's blocks."""
        return self._asked(lambda trunk: trunk.forward(call))

    def loss(
        self, call: TrunkCall, labels: Tensor | None, logits_to_keep: int = 0
    ) -> LossReply:
        """End the model."""
        return self._asked(lambda trunk: trunk.loss(call, labels, logits_to_keep))

    def extend(self, call: TrunkCall, place: Continuation, keep: int = 0) -> Tensor:
        """Go on with texts; a new session has no cache of them, and says so."""
        return self._asked(lambda trunk: trunk.extend(call, place, keep))

    def forget(self, texts: int) -> None:
        """Free what the trunk keeps of texts; a session that is gone keeps nothing."""
        with suppress(SessionError):
            self.trunk.forget(texts)

    def close(self) -> None:
        """Close the connection."""
        self.trunk.close()

    def _asked(self, ask: Callable[[TrunkClient], T]) -> T:
        try:
            return ask(self.trunk)
        except SessionError:
            self._begin_anew()
        return ask(self.trunk)

    def _begin_anew(self) -> None:
        meter = self.trunk.meter
        self.trunk.close()
        self.trunk = self.reopen()
        self.trunk.meter = meter  # who shows the bytes goes on with its count
