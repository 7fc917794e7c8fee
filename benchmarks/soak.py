# SPDX-License-Identifier: Apache-2.0
"""A trunk under load and faults for half an hour: what was lost, and what it holds.

Run from the top of the repository::

    python benchmarks/soak.py                 # 30 minutes
    python benchmarks/soak.py --minutes 2

`atlas-flwr trunk` runs as a process of its own, over TLS, with the random model `tiny`.
Its owner opens sessions, and clients, as threads, train them through a link that cuts
and stalls their connections. Meanwhile calls are made twice, steps come late, sessions
are left in mid-step, strangers try tokens, and bytes that are no request arrive. In the
first half the process is killed and started again. Adapters of each session that ends
are compared, bit by bit, with those of the same steps in an engine that nothing
disturbs. Prints what was done and what is left of it; ends with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from atlas_flwr.config import load_config
from atlas_flwr.errors import SessionError, TrunkError
from atlas_flwr.lora import AdapterState, Scaling, initial_factors
from atlas_flwr.server_apps.build import covering_plan
from atlas_flwr.server_apps.trunk import trunk_source
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import SessionSpec, connect
from atlas_flwr.trunk.transports.grpc_channel import own_grpc
from atlas_flwr.types import OptimizerSpec, TrunkCall
from benchmarks.faulty_link import FaultyLink
from benchmarks.trunk_process import TrunkProcess

KEYS = {"model": "tiny", "tasks": "spam", "trunk": "grpc"}
CLIENTS, RANK = 6, 4
Drawn = list[torch.Tensor]


class Soak:
    """The load, its faults, and the account of both."""

    def __init__(self, trunk: TrunkProcess, minutes: float) -> None:
        self.trunk, self.link, self.access = trunk, FaultyLink(trunk.port), trunk.access
        self.began = time.monotonic()
        self.ends = self.began + 60 * minutes
        self.done: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.told: Counter[str] = Counter()
        self.lost: list[str] = []
        self.lock = threading.Lock()
        config = load_config(KEYS)
        files = ModelFiles.of(config)
        outline = files.outline()
        self.plan = covering_plan(config, outline)
        self.undisturbed = trunk_source(config, files, self.plan).engine()
        _, self.shapes = outline.shapes_by_side(config.target_list, self.plan)

    @property
    def is_over(self) -> bool:
        """Whether the time is."""
        return time.monotonic() > self.ends

    def spec(self, seed: int) -> SessionSpec:
        """Return a session of its own adapters."""
        made = {
            name: initial_factors(name, shape, RANK, scaling=Scaling(8.0), seed=seed)
            for name, shape in self.shapes.items()
        }
        state = AdapterState(made)
        return SessionSpec(self.plan, state, OptimizerSpec(lr=0.01))

    def client(self, number: int) -> None:
        """Train one session after the other, until the time is over."""
        torch.set_num_threads(1)
        chance = random.Random(number)
        while not self.is_over:
            try:
                self.session(chance)
            except TrunkError as error:  # as a client's round fails, and the next comes
                with self.lock:
                    self.told[f"{type(error).__name__}: {str(error)[:70]}"] += 1
                time.sleep(1)

    def session(self, chance: random.Random) -> None:
        """Train a session, with faults; compare it if it comes to its end."""
        spec, steps = self.spec(chance.randrange(10**6)), chance.randint(3, 20)
        drawn = torch.Generator().manual_seed(chance.randrange(10**6))
        width = self.undisturbed.base.width
        shapes = [(2, chance.randint(2, 24), width) for _ in range(steps)]
        hidden = [torch.randn(shape, generator=drawn) for shape in shapes]
        grads = [torch.randn(shape, generator=drawn) / 10 for shape in shapes]
        address, secret, ca = self.access.address, self.access.secret, self.access.ca
        with own_grpc(address, secret, ca, 60.0) as owner:
            token = owner.open(spec)
            near = f"grpcs://127.0.0.1:{self.link.port}"
            link: Any = connect(near, token=token, ca=ca)
            with closing(link):
                for step in range(steps):
                    if chance.random() < 0.005:
                        self._count("sessions left in mid-step")
                        return
                    self._step(link, step, hidden, grads, chance)
            state = owner.adapters(token)
            owner.close(token)
        with self.lock:
            self.done["steps"] += steps
            self.done["sessions"] += 1
            if not same(state, self._alone(spec, hidden, grads)):
                self.lost.append(f"a session of {steps} steps has other adapters")

    def _step(
        self, trunk: Any, step: int, hidden: Drawn, grads: Drawn, chance: random.Random
    ) -> None:
        answer = trunk.forward(TrunkCall(hidden[step], step=step))
        if chance.random() < 0.05:
            self._count("calls made twice")
            again = trunk.forward(TrunkCall(hidden[step], step=step))
            if not torch.equal(answer, again):
                self.lost.append("a forward made twice has two answers")
        back = trunk.backward(step, grads[step])
        if chance.random() < 0.05:
            self._count("calls made twice")
            if not torch.equal(back, trunk.backward(step, grads[step])):
                self.lost.append("a backward made twice has two answers")
        if step > 3 and chance.random() < 0.05:
            self._count("steps that come late")
            try:
                trunk.forward(TrunkCall(hidden[step - 3], step=step - 3))
                self.lost.append("a step long done was taken again")
            except SessionError:
                pass

    def _alone(self, spec: SessionSpec, hidden: Drawn, grads: Drawn) -> AdapterState:
        engine = self.undisturbed
        token = engine.open(spec)
        for step, (x, grad) in enumerate(zip(hidden, grads, strict=True)):
            engine.forward(token, TrunkCall(x, step=step))
            engine.backward(token, step, grad)
        state = engine.adapters(token)
        engine.close(token)
        return state

    def _count(self, fault: str) -> None:
        with self.lock:
            self.faults[fault] += 1

    def disturb(self) -> None:
        """Make faults until the time is over; print the account each minute."""
        chance, half = random.Random(1), (self.began + self.ends) / 2
        kills = [self.began + (half - self.began) * share for share in (0.4, 0.8)]
        told, at_half = time.monotonic(), 0.0
        while not self.is_over:
            time.sleep(0.5 + chance.random())
            now = time.monotonic()
            if kills and now > kills[0]:
                kills.pop(0)
                self.trunk.kill()
                self._count("trunks killed and started again")
                self.trunk.start()
            elif chance.random() < 0.2:
                self.link.cut()
                self._count("all connections cut")
            elif chance.random() < 0.1:
                self.link.stall(3 * chance.random())
                self._count("links that stood still")
            else:
                self._strange(chance)
            if now > half and not at_half:
                at_half = self.trunk.memory
                print(f"half time: the trunk holds {at_half:.0f} MiB", flush=True)
            if now - told > 60:
                told = now
                spent = (now - self.began) / 60
                print(f"{spent:.0f} min: {dict(self.done)}", flush=True)
        self.at_half = at_half

    def _strange(self, chance: random.Random) -> None:
        if chance.random() < 0.5:
            self._count("bytes that are no request")
            with (
                suppress(OSError),
                socket.create_connection(("127.0.0.1", self.trunk.port), 5) as raw,
            ):
                raw.sendall(chance.randbytes(chance.randint(1, 5000)))
            return
        self._count("tokens that strangers tried")
        try:
            near = f"grpcs://127.0.0.1:{self.trunk.port}"
            link: Any = connect(
                near, token=chance.randbytes(18).hex(), ca=self.access.ca
            )
            with closing(link):
                link.forward(TrunkCall(torch.zeros(1, 1, self.undisturbed.base.width)))
            self.lost.append("a stranger was answered")
        except SessionError:
            pass
        except TrunkError as error:
            self.told[f"stranger: {type(error).__name__}"] += 1

    def open_sessions(self) -> int:
        """Ask how many sessions are left."""
        address, secret, ca = self.access.address, self.access.secret, self.access.ca
        with own_grpc(address, secret, ca, 60.0) as owner:
            return owner.stats().sessions


def same(found: AdapterState, wanted: AdapterState) -> bool:
    """Tell whether two states have the same bits."""
    return set(found.factors) == set(wanted.factors) and all(
        torch.equal(found.factors[name].A, factors.A)
        and torch.equal(found.factors[name].B, factors.B)
        for name, factors in wanted.factors.items()
    )


def main() -> int:
    """Run it; say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trunk = TrunkProcess(Path(folder) / "trunk", KEYS)
        try:
            soak = Soak(trunk, given.minutes)
            clients = [
                threading.Thread(target=soak.client, args=(k,)) for k in range(CLIENTS)
            ]
            for thread in clients:
                thread.start()
            soak.disturb()
            for thread in clients:
                thread.join()
            print(f"done: {dict(soak.done)}")
            print(f"faults: {dict(soak.faults)}")
            print(f"told to clients, whose next round came: {dict(soak.told)}")
            print(
                f"the trunk holds {trunk.memory:.0f} MiB, at half time "
                f"{soak.at_half:.0f}; {soak.open_sessions()} sessions are open"
            )
            print(f"lost: {soak.lost or 'nothing'}")
        finally:
            trunk.kill()
    return int(bool(soak.lost))


if __name__ == "__main__":
    sys.exit(main())
