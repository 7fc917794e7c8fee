# SPDX-License-Identifier: Apache-2.0
"""A trunk on another machine, as its owner has it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from atlas_flwr.errors import TrunkLost, WireError
from atlas_flwr.lora import AdapterState, LoraFactors
from atlas_flwr.trunk.engine.session import SessionSpec
from atlas_flwr.trunk.engine.stats import TrunkStats
from atlas_flwr.trunk.state_bytes import spec_bytes, state_bytes, state_of
from atlas_flwr.trunk.transports.envelope import opened_answer, sealed
from atlas_flwr.trunk.transports.owner_requests import OwnerVerb, Served, read, told
from atlas_flwr.trunk.transports.retry import retry_while_busy

__all__ = ["RemoteHost"]


class RemoteHost:
    """The owner's end (see :class:`~atlas_flwr.trunk.TrunkHost`).

    Several runs may have sessions on one trunk: names that they share things by are
    told apart by the run.

    Parameters
    ----------
    call : Callable[[bytes], bytes]
        Brings an envelope to the service, and its answer back.
    secret : str
        The owner's.
    timeout : float
        Seconds to wait for a trunk that is busy or away for a moment.

    Attributes
    ----------
    served : Served
        What the trunk said of itself.

    Raises
    ------
    TrunkError
        If the secret is another one's.
    TrunkLost
        If nothing answers.
    """

    def __init__(
        self, call: Callable[[bytes], bytes], secret: str, timeout: float = 600.0
    ) -> None:
        self._call, self._secret, self._timeout = call, secret, timeout
        self._run = secrets.token_hex(8)
        self.served = self._hello()

    def open(self, spec: SessionSpec) -> str:
        """Open a session; return its token."""
        shared = self._own(spec.shared) if spec.shared else ""
        state = replace(spec.state, origin=self._own(spec.state.origin), rest={})
        mine = replace(spec, shared=shared, state=state)
        found = self._ask(OwnerVerb.OPEN, spec_bytes(mine))
        with _understood():
            return str(found["token"])

    def share(self, name: str, products: Mapping[str, LoraFactors]) -> None:
        """Hold products that many sessions fold, once for all of them."""
        state = AdapterState(dict(products))
        self._send(OwnerVerb.SHARE, state_bytes(state, {"name": self._own(name)}))

    def unshare(self, name: str) -> None:
        """Forget shared products."""
        self._send(OwnerVerb.UNSHARE, told({"name": self._own(name)}))

    def adapters(self, token: str) -> AdapterState:
        """Copy out what a session has trained."""
        state, _ = state_of(self._send(OwnerVerb.ADAPTERS, told({"token": token})))
        return replace(state, origin=state.origin.removeprefix(self._own("")))

    def importance(self, token: str) -> dict[str, float]:
        """Return what a probing session has measured, by layer."""
        found = self._ask(OwnerVerb.IMPORTANCE, told({"token": token}))
        with _understood():
            return {name: float(value) for name, value in found.items()}

    def close(self, token: str) -> None:
        """Close a session; unknown ones are closed already."""
        self._send(OwnerVerb.CLOSE, told({"token": token}))

    def stats(self) -> TrunkStats:
        """Return the trunk's account, other runs' sessions included."""
        found = self._ask(OwnerVerb.STATS)
        with _understood():
            return TrunkStats(**found)

    def ping(self) -> None:
        """Raise :class:`TrunkLost` if the trunk is gone, or was started anew.

        One with more calls than it bears is there, and is waited for as by any call.
        """
        now = self._hello()
        if now.start != self.served.start:
            raise TrunkLost(
                "the trunk was started anew, and the steps of this round are lost with "
                "what it had before"
            )

    def leave(self) -> None:
        """Close all that this run has there."""
        self._send(OwnerVerb.LEAVE)

    def _own(self, name: str) -> str:
        return f"{self._run}:{name}"

    def _hello(self) -> Served:
        found = self._ask(OwnerVerb.HELLO)
        with _understood():
            return Served(**found)

    def _ask(self, verb: OwnerVerb, data: bytes = b"") -> dict[str, Any]:
        return read(self._send(verb, data))

    def _send(self, verb: OwnerVerb, data: bytes = b"") -> bytes:
        head = {"verb": str(verb), "secret": self._secret, "run": self._run}
        # An answer may be lost: by its name the call that is made again is known.
        envelope = sealed({**head, "call": secrets.token_hex(8)}, data)
        return retry_while_busy(
            lambda: opened_answer(self._call(envelope)), self._timeout
        )


@contextmanager
def _understood() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"a trunk that answers otherwise: {error!r}") from None
