# SPDX-License-Identifier: Apache-2.0
"""What a trunk's owner alone may ask of it, from another machine.

A transport brings an envelope to an :class:`OwnerService` and its answer back, as it
does for clients, but by another way: who has a session's token can step that session
and nothing else, and who opens, reads and closes sessions has the owner's secret.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from atlas_flwr.errors import AtlasError, TrunkBusy, TrunkError, TrunkLost, WireError
from atlas_flwr.lora import AdapterState, LoraFactors
from atlas_flwr.trunk.engine.engine import TrunkEngine
from atlas_flwr.trunk.engine.session import SessionSpec
from atlas_flwr.trunk.engine.stats import TrunkStats
from atlas_flwr.trunk.state_bytes import spec_bytes, spec_of, state_bytes, state_of
from atlas_flwr.trunk.transports.envelope import (
    opened_answer,
    opened_by_trunk,
    sealed,
    sealed_answer,
)
from atlas_flwr.trunk.transports.retry import retry_while_busy
from atlas_flwr.trunk.transports.watching import Journal

__all__ = ["OwnerService", "RemoteHost", "Served"]

SILENT = 3600.0  # seconds after which a run that says nothing has ended unnoticed
Shown = Callable[[str, bool], None]


class _Verb(StrEnum):
    HELLO = "hello"
    OPEN = "open"
    SHARE = "share"
    UNSHARE = "unshare"
    ADAPTERS = "adapters"
    IMPORTANCE = "importance"
    CLOSE = "close"
    STATS = "stats"
    LEAVE = "leave"


@dataclass(frozen=True)
class Served:
    """What a trunk says of itself to who owns it.

    Attributes
    ----------
    start : str
        Differs each time that it is started: its sessions ended with the one before.
    model : str
        What it was loaded from.
    cut : str
        The cut whose trunk it is; it serves every deeper one.
    blocks, width : int
        Of the whole model, and of its hidden states.
    classes : int
        Outputs of a classifier; 0 for a causal language model.
    dtype : str
        Of the base.
    digest : str
        Of some of its weights.
    """

    start: str
    model: str
    cut: str
    blocks: int
    width: int
    classes: int
    dtype: str
    digest: str


@dataclass
class _Run:
    """A run that has sessions here."""

    tokens: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)
    heard: float = 0.0


class OwnerService:
    """The trunk's end; safe to call from many threads.

    Parameters
    ----------
    engine : TrunkEngine
        The trunk.
    secret : str
        The owner's; at least 32 characters.
    served : Served
        What to say of it.
    clock : Callable[[], float]
        Seconds, for finding runs that ended without a word.
    journal : Journal, optional
        Is told who opens and closes, and who is refused.
    """

    def __init__(
        self,
        engine: TrunkEngine,
        secret: str,
        served: Served,
        clock: Callable[[], float] = time.monotonic,
        journal: Journal | None = None,
    ) -> None:
        if len(secret) < 32:
            raise TrunkError(
                f"an owner's secret of {len(secret)} characters; at least 32 are needed"
            )
        self.engine = engine
        self.served = served
        self.clock = clock
        self.journal = journal
        self._secret = secret.encode()
        self._runs: dict[str, _Run] = {}
        self._lock = threading.Lock()

    def answer(self, envelope: bytes, shown: Shown = lambda *_: None) -> bytes:
        """Answer an envelope by one: with bytes, or with the error that was met.

        Parameters
        ----------
        envelope : bytes
            As it came.
        shown : Callable[[str, bool], None]
            Is told the secret in it, and whether that is right; may refuse it.
        """
        return sealed_answer(lambda: self._told(envelope, shown))

    def _told(self, envelope: bytes, shown: Shown) -> bytes:
        try:
            return self._answer(envelope, shown)
        except AtlasError as error:
            if self.journal and not isinstance(error, TrunkBusy):
                self.journal.refused("owner", error)
            raise

    def _answer(self, envelope: bytes, shown: Shown) -> bytes:
        head, data = opened_by_trunk(envelope)
        secret = str(head.get("secret"))
        is_right = hmac.compare_digest(secret.encode(), self._secret)
        shown(secret, is_right)
        if not is_right:
            raise TrunkError(
                "not this trunk's owner: the secret is another one's. Copy the access "
                "file again that `atlas-flwr trunk` wrote"
            )
        verb, run = head.get("verb"), head.get("run")
        if not isinstance(verb, str) or verb not in [*_Verb]:
            raise WireError(f"a request for {verb!r}; owners ask {', '.join(_Verb)}")
        if not isinstance(run, str) or not run:
            raise WireError("a request that does not say which run it is of")
        answer = _ANSWERS[_Verb(verb)](self, run, data)
        if self.journal:
            self.journal.owner(verb, run, _token(verb, data, answer))
        return answer

    def hello(self, run: str, data: bytes) -> bytes:
        """Say what is served, and clear away what silent runs have left."""
        now = self.clock()
        with self._lock:
            silent = [r for r, of in self._runs.items() if now - of.heard > SILENT]
        for ended in silent:
            self.leave(ended, b"")
        self._heard(run)
        return _told(asdict(self.served))

    def open(self, run: str, data: bytes) -> bytes:
        """Open a session."""
        spec = spec_of(data)
        token = self.engine.open(spec)
        if self.journal:
            self.journal.opened(token, spec.client, spec.round)
        self._heard(run).tokens.add(token)
        return _told({"token": token})

    def share(self, run: str, data: bytes) -> bytes:
        """Hold products for many sessions."""
        state, about = state_of(data)
        name = str(about.get("name"))
        self.engine.share(name, state.factors)
        self._heard(run).shared.add(name)
        return b""

    def unshare(self, run: str, data: bytes) -> bytes:
        """Forget shared products."""
        name = _said(data, "name")
        self.engine.unshare(name)
        self._heard(run).shared.discard(name)
        return b""

    def adapters(self, run: str, data: bytes) -> bytes:
        """Copy out what a session has trained."""
        self._heard(run)
        return state_bytes(self.engine.adapters(_said(data, "token")))

    def importance(self, run: str, data: bytes) -> bytes:
        """Return what a probing session has measured."""
        self._heard(run)
        return _told(self.engine.importance(_said(data, "token")))

    def close(self, run: str, data: bytes) -> bytes:
        """Close a session."""
        token = _said(data, "token")
        self.engine.close(token)
        self._heard(run).tokens.discard(token)
        return b""

    def stats(self, run: str, data: bytes) -> bytes:
        """Return the engine's account."""
        self._heard(run)
        return _told(asdict(self.engine.stats()))

    def leave(self, run: str, data: bytes) -> bytes:
        """Close all that a run has here."""
        with self._lock:
            ended = self._runs.pop(run, _Run())
        for token in ended.tokens:
            self.engine.close(token)
            if self.journal:
                self.journal.owner(_Verb.CLOSE, run, token)
        for name in ended.shared:
            self.engine.unshare(name)
        return b""

    def _heard(self, run: str) -> _Run:
        with self._lock:
            found = self._runs.setdefault(run, _Run())
            found.heard = self.clock()
            return found


_ANSWERS: Mapping[_Verb, Callable[[OwnerService, str, bytes], bytes]] = {
    _Verb.HELLO: OwnerService.hello,
    _Verb.OPEN: OwnerService.open,
    _Verb.SHARE: OwnerService.share,
    _Verb.UNSHARE: OwnerService.unshare,
    _Verb.ADAPTERS: OwnerService.adapters,
    _Verb.IMPORTANCE: OwnerService.importance,
    _Verb.CLOSE: OwnerService.close,
    _Verb.STATS: OwnerService.stats,
    _Verb.LEAVE: OwnerService.leave,
}


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
        found = self._ask(_Verb.OPEN, spec_bytes(mine))
        with _understood():
            return str(found["token"])

    def share(self, name: str, products: Mapping[str, LoraFactors]) -> None:
        """Hold products that many sessions fold, once for all of them."""
        state = AdapterState(dict(products))
        self._send(_Verb.SHARE, state_bytes(state, {"name": self._own(name)}))

    def unshare(self, name: str) -> None:
        """Forget shared products."""
        self._send(_Verb.UNSHARE, _told({"name": self._own(name)}))

    def adapters(self, token: str) -> AdapterState:
        """Copy out what a session has trained."""
        state, _ = state_of(self._send(_Verb.ADAPTERS, _told({"token": token})))
        return replace(state, origin=state.origin.removeprefix(self._own("")))

    def importance(self, token: str) -> dict[str, float]:
        """Return what a probing session has measured, by layer."""
        found = self._ask(_Verb.IMPORTANCE, _told({"token": token}))
        with _understood():
            return {name: float(value) for name, value in found.items()}

    def close(self, token: str) -> None:
        """Close a session; unknown ones are closed already."""
        self._send(_Verb.CLOSE, _told({"token": token}))

    def stats(self) -> TrunkStats:
        """Return the trunk's account, other runs' sessions included."""
        found = self._ask(_Verb.STATS)
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
        self._send(_Verb.LEAVE)

    def _own(self, name: str) -> str:
        return f"{self._run}:{name}"

    def _hello(self) -> Served:
        found = self._ask(_Verb.HELLO)
        with _understood():
            return Served(**found)

    def _ask(self, verb: _Verb, data: bytes = b"") -> dict[str, Any]:
        return _read(self._send(verb, data))

    def _send(self, verb: _Verb, data: bytes = b"") -> bytes:
        head = {"verb": str(verb), "secret": self._secret, "run": self._run}
        envelope = sealed(head, data)
        return retry_while_busy(
            lambda: opened_answer(self._call(envelope)), self._timeout
        )


@contextmanager
def _understood() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"a trunk that answers otherwise: {error!r}") from None


def _token(verb: str, data: bytes, answer: bytes) -> str:
    if verb == _Verb.OPEN:
        return _said(answer, "token")
    return _said(data, "token") if verb == _Verb.CLOSE else ""


def _told(about: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(about)).encode()


def _read(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise WireError("an owner's request or answer that is not JSON") from None
    if not isinstance(found, dict):
        raise WireError("an owner's request or answer that is no object")
    return found


def _said(data: bytes, key: str) -> str:
    return str(_read(data).get(key))
