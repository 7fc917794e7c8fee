# SPDX-License-Identifier: Apache-2.0
"""What is to be seen of a trunk's calls from outside: who, how long, refused or not.

No tensor and no token is shown: a session is called by a hash of its token.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

from atlas_flwr.errors import AtlasError, TrunkBusy, WireError
from atlas_flwr.trunk.transports.envelope import opened_request, sealed_answer
from atlas_flwr.trunk.transports.requests import Request, Verb
from atlas_flwr.trunk.transports.service import FrameService
from atlas_flwr.types import MOST_IN_FLIGHT

__all__ = ["Call", "Calls", "Journal", "Watch", "session_name"]

TRAINING = (Verb.BACKWARD, Verb.LOSS)
TOLD = 20  # refusals a second that get a line each; more are counted


@dataclass(frozen=True)
class Call:
    """A client's call that was answered.

    Attributes
    ----------
    verb : str
        What was asked; ``?`` where the envelope could not be read.
    seconds : float
        From its arrival to its answer, waiting included.
    received, sent : int
        Bytes of the frames.
    error : str
        The kind of the refusal; empty if there was none.
    """

    verb: str
    seconds: float
    received: int = 0
    sent: int = 0
    error: str = ""


class Calls:
    """Counts the calls that were refused, and passes all on to who listens.

    Safe to call from many threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refused: Counter[str] = Counter()
        self._listeners: tuple[Callable[[Call], None], ...] = ()

    def heard(self, call: Call) -> None:
        """Take note of a call; one that has to come again is refused nothing."""
        if call.error and call.error != TrunkBusy.__name__:
            with self._lock:
                self._refused[call.error] += 1
        for listener in self._listeners:
            listener(call)

    def refused(self) -> dict[str, int]:
        """Return how many were refused since this was asked last, by kind of error."""
        with self._lock:
            found, self._refused = self._refused, Counter()
        return dict(sorted(found.items()))

    @contextmanager
    def heard_by(self, listener: Callable[[Call], None]) -> Iterator[None]:
        """Let another listen for a while."""
        self._listeners += (listener,)
        try:
            yield
        finally:
            self._listeners = tuple(x for x in self._listeners if x is not listener)


def session_name(token: str) -> str:
    """Name a session so that nobody can use it: by a hash of its token."""
    return hashlib.sha256(token.encode()).hexdigest()[:12]


class Journal:
    """Lines of JSON about who joined, trained and was refused.

    Parameters
    ----------
    files : Sequence[TextIO]
        Where to; each line is flushed.
    clock : Callable[[], float]
        Seconds, for holding back floods of refusals.
    """

    def __init__(
        self, files: Sequence[TextIO], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.files = files
        self.clock = clock
        self._lock = threading.Lock()
        self._second = 0.0
        self._refused = 0
        # By token: how many steps, and those that may be asked for again.
        self._steps: dict[str, tuple[int, deque[int]]] = {}
        self._whose: dict[str, dict[str, object]] = {}

    def write(self, event: str, **about: object) -> None:
        """Write a line."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **about})
        with self._lock:
            for file in self.files:
                file.write(f"{line}\n")
                file.flush()

    def refused(self, who: str, error: AtlasError, **about: object) -> None:
        """Write of a refusal, unless there are very many: then how many there were."""
        now = self.clock()
        held_back = 0
        with self._lock:
            if now - self._second >= 1:
                held_back = max(self._refused - TOLD, 0)
                self._second, self._refused = now, 0
            self._refused += 1
            told = self._refused <= TOLD
        if held_back:
            self.write("refusals held back", count=held_back)
        if told:
            kind, why = type(error).__name__, str(error)[:300]
            self.write("refused", who=who, error=kind, why=why, **about)

    def trained(self, token: str, step: int) -> None:
        """Count a step of a session; one that is asked for again counts once."""
        with self._lock:
            if token not in self._whose:
                return  # it was closed meanwhile
            count, last = self._steps.get(token, (0, deque(maxlen=MOST_IN_FLIGHT)))
            if step not in last:
                last.append(step)
                self._steps[token] = count + 1, last

    def opened(self, token: str, client: str, server_round: int) -> None:
        """Take note of whose a session is, for all that is written of it."""
        with self._lock:
            self._whose[token] = {"client": client, "round": server_round}

    def whose(self, token: str) -> Mapping[str, object]:
        """Return client and round of an open session; nothing of a guessed one."""
        with self._lock:
            return self._whose.get(token, {})

    def owner(self, verb: str, run: str, token: str) -> None:
        """Write of what an owner did, where it is one of these."""
        about = {"run": run, "session": session_name(token), **self.whose(token)}
        if verb == "open":
            self.write("joined", **about)
        elif verb == "close":
            with self._lock:
                steps, _ = self._steps.pop(token, (0, None))
                self._whose.pop(token, None)
            self.write("closed", **about, steps=steps)
        elif verb in ("hello", "leave"):
            self.write(f"owner's {verb}", run=run)


class Watch:
    """Looks at the calls of a service as they pass.

    Parameters
    ----------
    journal : Journal, optional
        Is told.
    heard : Callable[[Call], None]
        Likewise, of every call.
    """

    def __init__(
        self, journal: Journal | None, heard: Callable[[Call], None] = lambda _: None
    ) -> None:
        self.journal = journal
        self.heard = heard

    def answered(self, service: FrameService, envelope: bytes) -> bytes:
        """Answer a client's envelope (see :func:`~.envelope.answered`)."""
        return sealed_answer(lambda: self._answer(service, envelope))

    def unread(self, token: str | None, refuse: Callable[[], bytes]) -> bytes:
        """Answer a call of which nothing was read but the token that it showed."""
        return sealed_answer(lambda: self._unread(token, refuse))

    def _unread(self, token: str | None, refuse: Callable[[], bytes]) -> bytes:
        try:
            return refuse()
        except AtlasError as error:
            self.heard(Call("?", 0.0, error=type(error).__name__))
            self._write(error, token, verb="?")
            raise

    def _answer(self, service: FrameService, envelope: bytes) -> bytes:
        began = time.perf_counter()
        request: Request | None = None
        try:
            request = opened_request(envelope)
            frame = service.answer(request)
        except AtlasError as error:
            self._refused(request, len(envelope), began, error)
            raise
        seconds = time.perf_counter() - began
        self.heard(Call(request.verb, seconds, len(request.frame), len(frame)))
        if self.journal and request.verb in TRAINING and request.step is not None:
            self.journal.trained(request.token, request.step)
        return frame

    def _refused(
        self, request: Request | None, size: int, began: float, error: AtlasError
    ) -> None:
        verb = request.verb if request else "?"
        seconds = time.perf_counter() - began
        self.heard(Call(verb, seconds, size, error=type(error).__name__))
        if request is None or isinstance(error, WireError):
            self._write(error, None, verb=verb)
        else:
            self._write(error, request.token, verb=verb, step=request.step)

    def _write(self, error: AtlasError, token: str | None, **about: object) -> None:
        # A client that has to wait asks again: it is refused nothing.
        if self.journal is None or isinstance(error, TrunkBusy):
            return
        whose: Mapping[str, object] = {}
        if token is not None:
            whose = {"session": session_name(token), **self.journal.whose(token)}
        self.journal.refused("client", error, **about, **whose)
