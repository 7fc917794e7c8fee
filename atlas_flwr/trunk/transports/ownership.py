# SPDX-License-Identifier: Apache-2.0
"""What a trunk's owner alone may ask of it, from another machine: the trunk's end.

A transport brings an envelope to an :class:`OwnerService` and its answer back, as it
does for clients, but by another way: who has a session's token can step that session
and nothing else, and who opens, reads and closes sessions has the owner's secret. The
owner's end is :class:`~atlas_flwr.trunk.transports.remote_host.RemoteHost`.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from atlas_flwr.errors import AtlasError, TrunkBusy, TrunkError, WireError
from atlas_flwr.trunk.engine.engine import TrunkEngine
from atlas_flwr.trunk.state_bytes import spec_of, state_bytes, state_of
from atlas_flwr.trunk.transports.envelope import opened_by_trunk, sealed_answer
from atlas_flwr.trunk.transports.owner_requests import OwnerVerb, Served, said, told
from atlas_flwr.trunk.transports.watching import Journal

__all__ = ["OwnerService"]

SILENT = 3600.0  # seconds after which a run of which nothing is heard has ended
REMEMBERED = 16  # openings of a run, the last ones: they may be asked for again
LEFT = 1024  # runs that have left, the last ones: calls of theirs may be on their way
Shown = Callable[[str, bool], None]


@dataclass
class _Run:
    """A run that has sessions here."""

    tokens: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)
    heard: float = 0.0
    opened: dict[str, bytes] = field(default_factory=dict)  # answers, by their calls
    making: threading.Lock = field(default_factory=threading.Lock)
    has_left: bool = False

    def check_here(self) -> None:
        """Refuse to make what nobody would close."""
        if self.has_left:
            raise TrunkError("this run has left the trunk; a new one may come")


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
        self._left: deque[str] = deque(maxlen=LEFT)
        self._lock = threading.Lock()

    def knows(self, secret: str) -> bool:
        """Whether it is the owner's secret, found out in constant time."""
        return hmac.compare_digest(secret.encode(), self._secret)

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
        shown(secret, is_right := self.knows(secret))
        if not is_right:
            raise TrunkError(
                "not this trunk's owner: the secret is another one's. Copy the access "
                "file again that `atlas-flwr trunk` wrote"
            )
        verb, run = head.get("verb"), head.get("run")
        if not isinstance(verb, str) or verb not in [*OwnerVerb]:
            raise WireError(
                f"a request for {verb!r}; owners ask {', '.join(OwnerVerb)}"
            )
        if not isinstance(run, str) or not run:
            raise WireError("a request that does not say which run it is of")
        if verb == OwnerVerb.OPEN:
            return self._opened_once(run, head.get("call"), data)
        answer = _ANSWERS[OwnerVerb(verb)](self, run, data)
        if self.journal:
            token = said(data, "token") if verb == OwnerVerb.CLOSE else ""
            self.journal.owner(verb, run, token)
        return answer

    def _opened_once(self, run: str, call: object, data: bytes) -> bytes:
        """Open a session; a call that is made again is told of the same one."""
        if not isinstance(call, str) or not call:
            raise WireError("an opening that does not say which call it is of")
        its = self._heard(run)
        with its.making:  # the first call may still be at it
            its.check_here()
            if call not in its.opened:
                its.opened[call] = self._open(run, its, data)
                for old in list(its.opened)[:-REMEMBERED]:
                    del its.opened[old]
            return its.opened[call]

    def hello(self, run: str, data: bytes) -> bytes:
        """Say what is served, and clear away what silent runs have left."""
        now = self._heard(run).heard  # who asks is not silent, however long it was
        with self._lock:
            silent = {r: of for r, of in self._runs.items() if self._is_silent(of, now)}
            for name in silent:
                del self._runs[name]
        for name, ended in silent.items():
            self._clear(name, ended)
        return told(asdict(self.served))

    def _open(self, run: str, its: _Run, data: bytes) -> bytes:
        spec = spec_of(data)
        token = self.engine.open(spec)
        if self.journal:
            self.journal.opened(token, spec.client, spec.round)
            self.journal.owner(OwnerVerb.OPEN, run, token)
        its.tokens.add(token)
        return told({"token": token})

    def share(self, run: str, data: bytes) -> bytes:
        """Hold products for many sessions."""
        state, about = state_of(data)
        name = str(about.get("name"))
        its = self._heard(run)
        with its.making:
            its.check_here()
            self.engine.share(name, state.factors)
            its.shared.add(name)
        return b""

    def unshare(self, run: str, data: bytes) -> bytes:
        """Forget shared products."""
        name = said(data, "name")
        self.engine.unshare(name)
        self._heard(run).shared.discard(name)
        return b""

    def adapters(self, run: str, data: bytes) -> bytes:
        """Copy out what a session has trained."""
        self._heard(run)
        return state_bytes(self.engine.adapters(said(data, "token")))

    def importance(self, run: str, data: bytes) -> bytes:
        """Return what a probing session has measured."""
        self._heard(run)
        return told(self.engine.importance(said(data, "token")))

    def close(self, run: str, data: bytes) -> bytes:
        """Close a session."""
        token = said(data, "token")
        self.engine.close(token)
        self._heard(run).tokens.discard(token)
        return b""

    def stats(self, run: str, data: bytes) -> bytes:
        """Return the engine's account."""
        self._heard(run)
        return told(asdict(self.engine.stats()))

    def leave(self, run: str, data: bytes) -> bytes:
        """Close all that a run has here; it makes nothing any more."""
        with self._lock:
            self._left.append(run)
            ended = self._runs.pop(run, _Run())
        self._clear(run, ended)
        return b""

    def _clear(self, run: str, ended: _Run) -> None:
        with ended.making:  # what is being made is closed, too
            ended.has_left = True
        for token in list(ended.tokens):
            self.engine.close(token)
            if self.journal:
                self.journal.owner(OwnerVerb.CLOSE, run, token)
        for name in list(ended.shared):
            self.engine.unshare(name)

    def _is_silent(self, run: _Run, now: float) -> bool:
        """Tell if neither a run nor a client of its sessions has called for long."""
        called = [self.engine.idle(token) for token in list(run.tokens)]
        return min([now - run.heard, *called]) > SILENT

    def _heard(self, run: str) -> _Run:
        with self._lock:
            found = self._runs.get(run)
            if found is None:
                found = _Run(has_left=run in self._left)
                self._runs[run] = found
            found.heard = self.clock()
            return found


_ANSWERS: Mapping[OwnerVerb, Callable[[OwnerService, str, bytes], bytes]] = {
    OwnerVerb.HELLO: OwnerService.hello,
    OwnerVerb.SHARE: OwnerService.share,
    OwnerVerb.UNSHARE: OwnerService.unshare,
    OwnerVerb.ADAPTERS: OwnerService.adapters,
    OwnerVerb.IMPORTANCE: OwnerService.importance,
    OwnerVerb.CLOSE: OwnerService.close,
    OwnerVerb.STATS: OwnerService.stats,
    OwnerVerb.LEAVE: OwnerService.leave,
}
