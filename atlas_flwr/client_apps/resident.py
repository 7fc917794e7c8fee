# SPDX-License-Identifier: Apache-2.0
"""A node's resident worker, as a ClientApp sees it: who answers in its place.

Flower starts a process for each message that a SuperNode takes, and importing PyTorch
and Transformers is most of what a short message costs. With ``resident=SECONDS`` in the
node config the message is handed to a worker of this node, over a Unix socket that
belongs to this user alone; the first message starts it, and it ends with the SuperNode
that took that. See :mod:`atlas_flwr.client_apps.resident_worker` for what it does.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context, Message
from flwr.common import serde
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.message_pb2 import Message as ProtoMessage

from atlas_flwr.errors import AtlasError, ConfigError

__all__ = ["KEY", "answered_by_resident", "received", "sent"]

KEY = "resident"
LONGEST = 10**8  # seconds; with nan or inf an idle worker would never end
STARTING = 120.0  # seconds for its process to listen
_LENGTH = struct.Struct("<Q")


def answered_by_resident(
    message: Message, context: Context, call_next: Callable[..., Message]
) -> Message:
    """Let the node's worker answer, if it is to have one; a mod of a ClientApp.

    Raises
    ------
    ConfigError
        If ``resident`` is no number of seconds.
    AtlasError
        If the worker cannot be started, or died.
    """
    seconds = context.node_config.get(KEY, 0)
    if isinstance(seconds, bool | str) or not 0 <= seconds <= LONGEST:
        raise ConfigError(
            [
                f"--node-config {KEY}={seconds!r}: it is the seconds after which an "
                f"idle worker ends, as in '{KEY}=600', at most {LONGEST}; 0 is none"
            ]
        )
    if not seconds:
        return call_next(message, context)
    with _connected(float(seconds)) as worker:
        return _asked(worker, message, context)


def _asked(worker: socket.socket, message: Message, context: Context) -> Message:
    own = dict(context.node_config)
    del own[KEY]  # who answers has no worker
    theirs = Context(
        run_id=context.run_id,
        node_id=context.node_id,
        node_config=own,
        state=context.state,
        run_config=context.run_config,
        series_id=context.series_id,
    )
    about = {"cwd": os.getcwd(), "environ": dict(os.environ)}
    socket.send_fds(worker, [b"w"], [sys.__stdout__.fileno(), sys.__stderr__.fileno()])  # type: ignore[union-attr]
    for part in (
        json.dumps(about).encode(),
        serde.message_to_proto(message).SerializeToString(),
        serde.context_to_proto(theirs).SerializeToString(),
    ):
        sent(worker, part)
    try:
        failure = received(worker).decode()
        if failure:
            raise AtlasError(failure)
        reply = ProtoMessage.FromString(received(worker))
        after = ProtoContext.FromString(received(worker))
    except EOFError:
        raise AtlasError(
            "the process that answered for this node has died, as of too little "
            "memory; its message was not answered"
        ) from None
    context.state = serde.context_from_proto(after).state
    return serde.message_from_proto(reply)


@contextmanager
def _connected(seconds: float) -> Iterator[socket.socket]:
    path = _folder() / f"{_code()}.sock"
    with (path.with_suffix(".lock")).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several messages at once, one starts it
        worker = _dialled(path) or _started(path, seconds)
    with worker:
        yield worker


def _dialled(path: Path) -> socket.socket | None:
    made = socket.socket(socket.AF_UNIX)
    try:
        made.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        made.close()
        return None
    return made


def _started(path: Path, seconds: float) -> socket.socket:
    path.unlink(missing_ok=True)
    told = path.with_suffix(".log")
    command = [sys.executable, "-m", f"{__package__}.resident_worker", str(path)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with told.open("wb") as log, _starter() as starter:
        process = subprocess.Popen(
            [*command, str(seconds), *map(str, starter)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environ,
            cwd=path.parent,
            start_new_session=True,
            pass_fds=starter,
        )
    deadline = time.monotonic() + STARTING
    while process.poll() is None and time.monotonic() < deadline:
        worker = _dialled(path)
        if worker is not None:
            return worker
        time.sleep(0.05)
    said = told.read_text(errors="replace").strip()[-500:]
    process.kill()
    raise AtlasError(
        f"the resident worker of this node did not start ({said or 'it said nothing'});"
        f" leave {KEY} out of --node-config, and each message has its own process"
    )


@contextmanager
def _starter() -> Iterator[tuple[int, ...]]:
    """Hold on to what starts ClientApps: it ends with its SuperNode, however that ends.

    Nothing is held where the system has no handles of processes (before Linux 5.3).
    """
    parent = os.getppid()
    if not parent or not hasattr(os, "pidfd_open"):
        yield ()
        return
    try:
        handle = os.pidfd_open(parent)
    except OSError as error:  # a Python that knows of them, on a system without
        if error.errno != errno.ENOSYS:
            raise
        yield ()
        return
    try:
        yield (handle,)
    finally:
        os.close(handle)


def _folder() -> Path:
    """Return a folder that belongs to this user alone.

    Raises
    ------
    AtlasError
        If somebody else made it, or others may read it.
    """
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    folder = Path(base) / f"atlas-flwr-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or folder.is_symlink():
        raise AtlasError(
            f"{folder} is not this user's alone; whoever else writes there could "
            f"answer for this node. Remove it, or set XDG_RUNTIME_DIR to a private one"
        )
    return folder


def _code() -> str:
    """Tell one installed code from another: a new version has a worker of its own."""
    told = "\n".join([sys.executable, __file__, *sys.path])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def sent(to: socket.socket, part: bytes) -> None:
    """Send bytes with their length before them."""
    to.sendall(_LENGTH.pack(len(part)))
    to.sendall(part)


def received(of: socket.socket) -> bytes:
    """Receive what :func:`sent` has sent.

    Raises
    ------
    EOFError
        If the other end is gone.
    """
    (length,) = _LENGTH.unpack(_exactly(of, _LENGTH.size))
    return _exactly(of, length)


def _exactly(of: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        try:
            part = of.recv(min(count - len(found), 1 << 20))
        except ConnectionResetError:
            part = b""
        if not part:
            raise EOFError
        found += part
    return bytes(found)
