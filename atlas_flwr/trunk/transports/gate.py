# SPDX-License-Identifier: Apache-2.0
"""Whose calls a gRPC service reads: those that show a token when they begin.

gRPC gives a call a thread as it begins, and in it the call's bytes are waited for. So
who showed nothing could begin as many calls as there are threads, leave them half sent,
and keep everybody out. Such calls are answered unread, in threads of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import torch

from atlas_flwr.errors import WireError
from atlas_flwr.trunk.transports.envelope import VERSION
from atlas_flwr.trunk.transports.grpc_channel import TOKEN, cut

__all__ = ["Answer", "Gate", "Refusal", "shows_nothing"]

Answer = Callable[[bytes, Any], bytes]  # of an envelope and gRPC's context
Refusal = Callable[[str | None, Any], bytes]  # of what was shown, and the context


def shows_nothing() -> WireError:
    """Return what to tell a caller that shows no token."""
    return WireError(
        "a call that shows no token as it begins: its caller speaks an earlier version "
        f"of the trunk's protocol, and this trunk version {VERSION}: install the same "
        "atlas-flwr on both"
    )


def _shown_in(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """Return the token or secret that a call shows, if any."""
    for key, value in metadata:
        if key == TOKEN and isinstance(value, bytes):
            return value.decode(errors="replace")
    return None


class Gate(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """The calls of one service.

    What a call says of itself inside is looked at as ever: the gate opens nothing.

    Parameters
    ----------
    name : str
        Of the service.
    answer : Answer
        Answers an envelope.
    is_known : Callable[[str], bool]
        Whether a token or secret opens anything; answers at once.
    refuse : Refusal
        Answers a call that is not read; ``None`` if it has shown nothing.
    largest : int
        Bytes of an envelope.
    strangers : ThreadPoolExecutor
        In which calls are refused.
    """

    def __init__(
        self,
        name: str,
        answer: Answer,
        is_known: Callable[[str], bool],
        refuse: Refusal,
        largest: int,
        strangers: ThreadPoolExecutor,
    ) -> None:
        self.answer, self.is_known, self.largest = answer, is_known, largest
        self._handlers = {
            f"/{name}/Call": grpc.unary_unary_rpc_method_handler(self._call),
            f"/{name}/Pieces": grpc.stream_stream_rpc_method_handler(self._pieces),
        }

        def unread(parts: Iterable[bytes], context: Any) -> Iterator[bytes]:
            yield from cut(refuse(_shown_in(context.invocation_metadata()), context))

        unread.experimental_thread_pool = strangers  # type: ignore[attr-defined]
        self._refused = grpc.stream_stream_rpc_method_handler(unread)

    def service(self, handler_call_details: Any) -> Any:
        """Return what is done with a call that begins; ``None`` if it has no name."""
        found = self._handlers.get(handler_call_details.method)
        if found is None:
            return None
        shown = _shown_in(handler_call_details.invocation_metadata)
        return found if shown is not None and self.is_known(shown) else self._refused

    def _call(self, envelope: bytes, context: Any) -> bytes:
        torch.set_num_threads(1)  # OpenMP keeps the number for each thread
        return self.answer(envelope, context)

    def _pieces(self, parts: Iterable[bytes], context: Any) -> Iterator[bytes]:
        whole = bytearray()
        for part in parts:
            whole += part
            if len(whole) > self.largest:
                context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"more than {self.largest >> 20} MiB in one call",
                )
        yield from cut(self._call(bytes(whole), context))
