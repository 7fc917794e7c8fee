# SPDX-License-Identifier: Apache-2.0
"""Sessions that are stepped with one certificate alone, where a trunk asks for them.

A client says in Flower's own message whose its certificate is, and its session is
opened for that. So a token that got lost is of no use to another node, though that has
a certificate that the trunk takes.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from atlas_flwr.errors import SessionError

__all__ = ["Holders"]


@dataclass
class Holders:
    """For whom sessions were opened; safe to call from many threads."""

    _of: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def bind(self, token: str, holder: str) -> None:
        """Keep a session for one holder; for nobody in particular if that is empty."""
        if holder:
            with self._lock:
                self._of[token] = holder

    def free(self, token: str) -> None:
        """Forget a session that was closed."""
        with self._lock:
            self._of.pop(token, None)

    def check(self, token: str, holder: str) -> None:
        """Check that a session may be called by this one.

        Raises
        ------
        SessionError
            If it was opened for another one; which, is not told.
        """
        with self._lock:
            is_others = self._of.get(token, holder) != holder
        if is_others:
            raise SessionError(
                f"this session is another certificate's than the one shown, {holder!r}:"
                " a token works for the node that it was sent to. A node whose "
                "certificate got another name must be started again before the next run"
            )
