# SPDX-License-Identifier: Apache-2.0
"""Lines of ``metrics.jsonl`` about clients that did not do what they were asked."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ClientFailed"]


@dataclass(frozen=True)
class ClientFailed:
    """A client answered a message by an error, or not in time; the round went on.

    Attributes
    ----------
    round : int
        Server round.
    kind : str
        Of the message: ``train``, ``evaluate``, ``query.fingerprint``...
    client : str
        Who.
    reason : str
        The first sentence of what it said.
    """

    round: int
    kind: str
    client: str
    reason: str
