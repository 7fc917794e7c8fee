# SPDX-License-Identifier: Apache-2.0
"""A node's resident worker: a process that has imported all, and forks for a message.

A child answers one message and ends, so nothing of one message is left to the next, and
memory stays flat. It writes where the ClientApp would have written, and ends at once
when that is gone. The worker itself holds imports alone: no model, no thread, no GPU.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from flwr.common import serde
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.message_pb2 import Message as ProtoMessage

from atlas_flwr.client_apps.resident import received, sent

__all__ = ["main"]

LOOK = 0.5  # seconds between looks for children that have ended
HEAVY = ("atlas_flwr.client_apps.app", "atlas_flwr.client_apps.round")


def main(path: Path, seconds: float, *starter: int) -> None:
    """Listen; end when nobody has asked for so many seconds.

    Parameters
    ----------
    path : Path
        The socket.
    seconds : float
        For which it may be idle.
    *starter : int
        A handle of the process that starts ClientApps, with which it ends.
    """
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(64)  # who comes while modules are imported waits here
        for module in HEAVY:
            importlib.import_module(module)
        _serve(server, path, seconds, starter)


def _serve(
    server: socket.socket, path: Path, seconds: float, starter: Sequence[int]
) -> None:
    children: set[int] = set()
    asked, leaves = time.monotonic(), False
    while True:
        waited = () if leaves else starter
        ready, _, _ = select.select([server.fileno(), *waited], (), (), LOOK)
        if server.fileno() in ready:
            connection, _ = server.accept()
            children.add(_forked(server, connection))
        children = {child for child in children if not os.waitpid(child, os.WNOHANG)[0]}
        if children:
            asked = time.monotonic()
        elif leaves or not path.exists():
            return
        if set(starter).intersection(ready) or time.monotonic() - asked > seconds:
            leaves = True  # once more round, for who has come meanwhile
            path.unlink(missing_ok=True)


def _forked(server: socket.socket, connection: socket.socket) -> int:
    child = os.fork()
    if child:
        connection.close()
        return child
    server.close()
    try:
        _answer(connection)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _answer(connection: socket.socket) -> None:
    """Answer a message as the ClientApp would; what is raised is told."""
    _, outputs, _, _ = socket.recv_fds(connection, 1, 2)
    for number, output in enumerate(outputs, start=1):
        os.dup2(output, number)
    about = json.loads(received(connection))
    _stand_in(about["environ"], about["cwd"])
    message = serde.message_from_proto(ProtoMessage.FromString(received(connection)))
    context = serde.context_from_proto(ProtoContext.FromString(received(connection)))
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    from atlas_flwr.client_apps.app import app

    try:
        reply = app(message, context)
    except Exception as error:
        import traceback

        traceback.print_exc()
        sent(connection, f"{type(error).__name__}: {error}".encode())
        return
    sent(connection, b"")
    sent(connection, serde.message_to_proto(reply).SerializeToString())
    sent(connection, serde.context_to_proto(context).SerializeToString())


def _stand_in(environ: Mapping[str, str], folder: str) -> None:
    """Take a ClientApp's environment, and keep nothing of who started the worker.

    That may have been another node of this user's.
    """
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)


def _end_with(connection: socket.socket) -> None:
    """End when the ClientApp's process does: nobody would read the answer."""
    try:
        connection.recv(1)
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), *map(int, sys.argv[3:]))
