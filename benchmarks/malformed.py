# SPDX-License-Identifier: Apache-2.0
"""A million malformed requests against a trunk that serves over TLS.

Run from the top of the repository::

    python benchmarks/malformed.py                 # a million; half an hour
    python benchmarks/malformed.py --requests 20000

`atlas-flwr trunk` runs as a process of its own. Requests begin as valid ones of clients
and of the owner and are then damaged: bytes flipped, cut, repeated or spliced; entries
of the head replaced by values of other types and sizes; all of it with the checksum
made anew, or not. Half of them carry the token of a session, or the owner's secret, and
nine of ten show it as they begin, so that they get past the door. Each must be
answered, by a frame or by an error of this library; a session that nobody disturbed
must train on to the bits of an engine of its own. Prints what was answered; ends with 1
if anything else happened.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from atlas_flwr.errors import AtlasError
from atlas_flwr.trunk import connect
from atlas_flwr.trunk.state_bytes import spec_bytes
from atlas_flwr.trunk.transports.envelope import (
    VERSION,
    opened_answer,
    opened_by_trunk,
    sealed,
    sealed_request,
)
from atlas_flwr.trunk.transports.grpc_channel import CLIENTS, OWNER, TOKEN, own_grpc
from atlas_flwr.trunk.transports.local import LoopbackTrunk
from atlas_flwr.trunk.transports.requests import Request
from atlas_flwr.types import TrunkCall
from atlas_flwr.wire.codecs import codec_named
from benchmarks.soak import KEYS, Soak, same
from benchmarks.trunk_process import TrunkProcess

AT_ONCE = 32
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**64, -(2**63), 0.5, 1e308, float("nan"), "", "x" * 3000,
    "forward", "\x00", [], [1, 2], {}, {"step": 1}, [[[]]], "\ud800",
)  # fmt: skip


def samples(soak: Soak, token: str) -> list[tuple[str, bytes]]:
    """Return valid envelopes of each kind, by the service that takes them."""
    made: list[Request] = []

    class Noting(LoopbackTrunk):
        def exchange(self, request: Request) -> bytes:
            made.append(request)
            return super().exchange(request)

    from atlas_flwr.trunk.transports.service import FrameService

    engine = soak.undisturbed
    for codec in ("raw", "int8", "int4"):
        own = engine.open(soak.spec(0))
        trunk = Noting(
            token=own, codec=codec_named(codec), service=FrameService(engine)
        )
        hidden = torch.randn(2, 5, engine.base.width)
        mask = torch.ones(2, 5, dtype=torch.long)
        answer = trunk.forward(TrunkCall(hidden, attention_mask=mask, step=0))
        trunk.backward(0, torch.ones_like(answer))
        trunk.forward(TrunkCall(hidden))
        engine.close(own)
    requests = [
        Request(r.verb, token, r.codec, r.frame, r.step, r.logits_to_keep) for r in made
    ]
    found = [(CLIENTS, sealed_request(request)) for request in requests]
    spec = spec_bytes(soak.spec(1))
    for verb, data in (
        ("hello", b""),
        ("open", spec),
        ("share", spec),
        ("adapters", json.dumps({"token": token}).encode()),
        ("close", b'{"token": "none"}'),
        ("stats", b""),
        ("leave", b""),
    ):
        head = {"secret": soak.access.secret, "verb": verb, "run": "malformed"}
        found.append((OWNER, sealed(head, data)))
    return found


def damaged(envelope: bytes, chance: random.Random) -> bytes:
    """Damage an envelope."""
    way = chance.random()
    if way < 0.1:
        return chance.randbytes(chance.randint(0, 400))
    if way < 0.3:
        return _bytes(envelope, chance)
    head, frame = opened_by_trunk(envelope)
    if way < 0.6:
        for _ in range(chance.randint(1, 2)):
            key = chance.choice([*head, "more"])
            if chance.random() < 0.2:
                head.pop(key, None)
            else:
                head[key] = chance.choice(ODD)
    if way > 0.5:
        frame = _bytes(frame, chance)
    return sealed(head, frame)


def _bytes(data: bytes, chance: random.Random) -> bytes:
    if not data:
        return chance.randbytes(chance.randint(0, 64))
    kind, at = chance.randrange(6), chance.randrange(len(data))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data + chance.randbytes(chance.randint(1, 64))
    if kind == 2:
        return data[:at] + data[chance.randrange(len(data)) :]
    if kind == 3:  # sizes and lengths stand in the first bytes
        at = min(at, chance.randint(0, 300))
        size = chance.choice((0, 1, 255, 2**16, 2**31, 2**32 - 1))
        return data[:at] + size.to_bytes(4, "little") + data[at + 4 :]
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(changed)


class Flood:
    """Damaged requests, and what was answered."""

    def __init__(self, soak: Soak, token: str) -> None:
        pem = grpc.ssl_channel_credentials(soak.access.ca.encode())
        target = soak.access.address.partition("://")[2]
        self.channel = grpc.secure_channel(target, pem)
        self.samples = samples(soak, token)
        self.secrets = {CLIENTS: token.encode(), OWNER: soak.access.secret.encode()}
        self.answers: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.slots = threading.Semaphore(AT_ONCE)

    def send(self, number: int, seed: int) -> None:
        """Send so many."""
        chance = random.Random(seed)
        for _ in range(number):
            service, envelope = chance.choice(self.samples)
            sent = damaged(envelope, chance)
            shown = [(TOKEN, self.secrets[service])]
            if chance.random() < 0.1:
                shown = chance.choice(([], [(TOKEN, chance.randbytes(9))]))
            self.slots.acquire()
            begin = self.channel.unary_unary(f"/{service}/Call").future
            call = begin(sent, timeout=60, metadata=shown)
            call.add_done_callback(self._answered)
        for _ in range(AT_ONCE):
            self.slots.acquire()
        self.slots.release(AT_ONCE)

    def _answered(self, call: Any) -> None:
        self.slots.release()
        try:
            opened_answer(call.result())
            told, book = "a frame", self.answers
        except AtlasError as error:
            told, book = type(error).__name__, self.answers
        except grpc.RpcError as error:
            full = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
            told = f"{error.code().name}: {error.details()}"[:200]  # type: ignore[attr-defined]
            book = self.answers if full else self.wrong
        with self.lock:
            book[told] += 1


def main() -> int:
    """Run it; say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        # All that come are to be read, not only as many a second as it takes.
        trunk = TrunkProcess(Path(folder) / "trunk", {**KEYS, "trunk-rate": 0})
        try:
            return flooded(Soak(trunk, 0.0), given.requests)
        finally:
            trunk.kill()


def flooded(soak: Soak, requests: int) -> int:
    """Send all; return 1 if anything went wrong."""
    access, began = soak.access, time.monotonic()
    with own_grpc(access.address, access.secret, access.ca, 60.0) as owner:
        spec = soak.spec(7)
        witness, victim = owner.open(spec), owner.open(soak.spec(8))
        link = connect(access.address, token=witness, ca=access.ca)
        hidden = torch.randn(2, 6, soak.undisturbed.base.width)
        flood, before, part = Flood(soak, victim), 0.0, max(requests // 20, 1)
        for step in range(20):
            answer = link.forward(TrunkCall(hidden, step=step))
            flood.send(part, seed=step)
            link.backward(step, torch.ones_like(answer))
            before = before or soak.trunk.memory
            rate = (step + 1) * part / (time.monotonic() - began)
            print(
                f"{(step + 1) * part:,} requests, {rate:.0f} a second; the trunk holds "
                f"{soak.trunk.memory:.0f} MiB",
                flush=True,
            )
        grads = [torch.ones_like(hidden)] * 20
        wanted = soak._alone(spec, [hidden] * 20, grads)
        untouched = same(owner.adapters(witness), wanted)
        sessions = owner.stats().sessions
    print(f"version {VERSION} of the protocol, keys {KEYS}")
    print(f"answered: {dict(flood.answers.most_common())}")
    print(f"anything else: {dict(flood.wrong) or 'nothing'}")
    print(f"the undisturbed session has the bits of its own engine: {untouched}")
    print(
        f"memory after the first twentieth {before:.0f} MiB, in the end "
        f"{soak.trunk.memory:.0f}; sessions open {sessions}"
    )
    return int(bool(flood.wrong) or not untouched)


if __name__ == "__main__":
    sys.exit(main())
