"""A node's resident worker in whose children something goes wrong in a chosen message.

``python -m tests.server_apps.faulty_worker SOCKET`` forks for each message, as
:mod:`atlas_flwr.client_apps.resident_worker` does. The message that the environment's
``FAULT`` names (JSON: client, round, kind and its own) is answered with that fault.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from atlas_flwr.client_apps import app as client_app
from atlas_flwr.client_apps import resident_worker
from atlas_flwr.errors import SessionError
from atlas_flwr.trunk.transports import grpc_channel
from atlas_flwr.trunk.transports.grpc_channel import GrpcTrunk
from atlas_flwr.trunk.transports.requests import Verb

FAULT = "FAULT"
Told = Mapping[str, Any]


def stand_still(told: Told) -> None:
    """Stand in hops of steps, ``stops``, until told to go on, or killed."""
    grpc_channel.AWAY = told.get("away", grpc_channel.AWAY)
    folder, stops = Path(told["folder"]), told["stops"]
    forward, exchange = GrpcTrunk.forward, GrpcTrunk.exchange

    def reached(hop: str, step: int | None) -> None:
        if [hop, step] not in stops:
            return
        number = stops.index([hop, step])
        (folder / "new").write_text(str(os.getpid()))
        (folder / "new").rename(folder / f"here-{number}")
        while not (folder / f"go-{number}").exists():
            time.sleep(0.01)

    def standing_forward(self: Any, call: Any) -> Any:
        reached("head-forward", call.step)
        answer = forward(self, call)
        reached("tail-loss", call.step)
        return answer

    def standing_exchange(self: Any, request: Any) -> bytes:
        reached(f"trunk-{request.verb}", request.step)
        return exchange(self, request)

    for name, method in (
        ("forward", standing_forward),
        ("exchange", standing_exchange),
    ):
        setattr(GrpcTrunk, name, method)


def call_twice(told: Told) -> None:
    """Make each call twice, and each step's once more when the next is done."""
    exchange, before = GrpcTrunk.exchange, {}

    def doubling(self: Any, request: Any) -> bytes:
        answer = exchange(self, request)
        if request.step is not None:
            assert exchange(self, request) == answer
            late = before.get((request.verb, request.step - 2))
            if request.verb == Verb.BACKWARD and late:
                try:
                    exchange(self, late)
                except SessionError:
                    pass
                else:
                    raise AssertionError("a step long done was taken again")
            before[request.verb, request.step] = request
        return answer

    setattr(GrpcTrunk, "exchange", doubling)  # noqa: B010


def be_slow(told: Told) -> None:
    """Take ten times as long for what is computed here, and think it is tomorrow."""
    exchange, since, now = GrpcTrunk.exchange, [time.monotonic()], time.time
    time.time = lambda: now() + 86_400

    def slow(self: Any, request: Any) -> bytes:
        time.sleep(9 * (time.monotonic() - since[0]))
        answer = exchange(self, request)
        since[0] = time.monotonic()
        return answer

    setattr(GrpcTrunk, "exchange", slow)  # noqa: B010


FAULTS: Mapping[str, Callable[[Told], None]] = {
    "stands": stand_still,
    "calls twice": call_twice,
    "is slow": be_slow,
}


def main() -> None:
    """Listen."""
    answered = client_app.app

    def faulty(message: Any, context: Any) -> Any:
        told = json.loads(os.environ.get(FAULT, "{}"))
        config = next(iter(message.content.config_records.values()))
        here = (
            message.metadata.message_type,
            context.node_config["partition-id"],
            config.get("server-round"),
        )
        if here == ("train", told.get("client"), told.get("round")):
            FAULTS[told["kind"]](told)
        return answered(message, context)

    client_app.app = faulty  # type: ignore[assignment]
    torch.set_num_threads(1)
    resident_worker.main(Path(sys.argv[1]), 600.0)


if __name__ == "__main__":
    main()
