# SPDX-License-Identifier: Apache-2.0
"""A link that is cut, stands still, or is far: TCP through this process."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

Pair = tuple[socket.socket, socket.socket]


class FaultyLink:
    """Carries connections to a port of this machine.

    Parameters
    ----------
    target : int
        The port.

    Attributes
    ----------
    port : int
        What is dialled instead.
    delay : float
        Seconds that a piece takes, each way.
    holds_answers : bool
        Let what comes back wait.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.delay = 0.0
        self.holds_answers = False
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._pairs: set[Pair] = set()
        self._stalled_until = self._down_until = 0.0
        threading.Thread(target=self._listen, daemon=True).start()

    def cut(self, seconds: float = 0.0) -> None:
        """Cut all connections, and let in no new ones for so long."""
        self._down_until = time.monotonic() + seconds
        for pair in list(self._pairs):
            self._close(pair)

    def stall(self, seconds: float) -> None:
        """Carry nothing for so long."""
        self._stalled_until = time.monotonic() + seconds

    def _listen(self) -> None:
        while True:
            near, _ = self._server.accept()
            try:
                if time.monotonic() < self._down_until:
                    raise OSError
                far = socket.create_connection(("127.0.0.1", self.target), 5)
            except OSError:
                near.close()
                continue
            pair = (near, far)
            self._pairs.add(pair)
            for way in (pair, pair[::-1]):
                carry = threading.Thread(target=self._carry, args=(pair, *way))
                carry.daemon = True
                carry.start()

    def _carry(self, pair: Pair, of: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):
            while data := of.recv(1 << 16):
                time.sleep(self.delay)
                while time.monotonic() < self._stalled_until or (
                    self.holds_answers and of is pair[1]
                ):
                    time.sleep(0.01)
                to.sendall(data)
        self._close(pair)

    def _close(self, pair: Pair) -> None:
        self._pairs.discard(pair)
        for side in pair:
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()
