# SPDX-License-Identifier: Apache-2.0
"""Requests and answers as bytes between machines: version 2 of the trunk's protocol.

An envelope is ``b"ATLS"``, the version (2 bytes), 2 bytes of zeros, the CRC-32 of all
that follows (4), the head's length (4), the head (JSON), and a frame as
:mod:`atlas_flwr.wire.frames` makes it. Integers are unsigned and little-endian. Nothing
is unpickled, and whatever is wrong with the bytes is a
:class:`~atlas_flwr.errors.WireError`.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from atlas_flwr.errors import (
    AdapterError,
    AtlasError,
    CacheLost,
    PlanError,
    SessionError,
    TrunkBusy,
    TrunkError,
    TrunkLost,
    WireError,
)
from atlas_flwr.trunk.transports.requests import PATIENCE, Request, Verb
from atlas_flwr.trunk.transports.service import FrameService

__all__ = [
    "VERSION",
    "answered",
    "opened_answer",
    "opened_by_trunk",
    "opened_request",
    "sealed",
    "sealed_answer",
    "sealed_request",
]

VERSION = 2
MAGIC = b"ATLS"
LONGEST_HEAD = 16384  # bytes
LONGEST_WAIT = 1e9  # seconds
LONGEST_ERROR = 2048  # characters, of at most 6 bytes in JSON
_FIXED = struct.Struct("<4sHHII")

# What a trunk may answer instead of a frame; by name, so that nothing else is raised.
_ERRORS: Mapping[str, type[AtlasError]] = {
    kind.__name__: kind
    for kind in (
        AdapterError,
        CacheLost,
        PlanError,
        SessionError,
        TrunkBusy,
        TrunkError,
        TrunkLost,
        WireError,
    )
}


def sealed_request(request: Request) -> bytes:
    """Put a request into an envelope."""
    head = {
        "verb": str(request.verb),
        "token": request.token,
        "codec": request.codec,
        "step": request.step,
        "keep": request.logits_to_keep,
        "ticket": request.ticket,
        "wait": min(request.patience, LONGEST_WAIT),
    }
    return sealed(head, request.frame)


def opened_request(envelope: bytes) -> Request:
    """Take a request out of its envelope.

    Raises
    ------
    WireError
        If it is none, is damaged, or of another version.
    """
    head, frame = opened_by_trunk(envelope)
    verb, step = head.get("verb"), head.get("step")
    if not isinstance(verb, str) or verb not in [*Verb]:
        raise WireError(f"a request for {verb!r}; a trunk knows {', '.join(Verb)}")
    token, codec, keep = head.get("token"), head.get("codec"), head.get("keep")
    if not isinstance(token, str) or not isinstance(codec, str):
        raise WireError("a request whose token or codec is no text")
    if not (step is None or _is_count(step)) or not _is_count(keep):
        raise WireError("a request whose step or number of logits is no whole number")
    ticket, wait = head.get("ticket", ""), head.get("wait", PATIENCE)
    if not isinstance(ticket, str) or not _is_wait(wait):
        raise WireError("a request whose ticket is no text, or whose wait no seconds")
    return Request(
        Verb(verb), token, codec, frame, step, int(keep or 0), ticket, float(wait)
    )


def opened_by_trunk(envelope: bytes) -> tuple[dict[str, Any], bytes]:
    """Take head and frame out of what came to a trunk.

    Raises
    ------
    WireError
        If it is no envelope, is damaged, or of another version.
    """
    return _opened(envelope, "a client", "this trunk")


def answered(service: FrameService, envelope: bytes) -> bytes:
    """Answer a client's envelope."""
    return sealed_answer(lambda: service.answer(opened_request(envelope)))


def sealed_answer(answer: Callable[[], bytes]) -> bytes:
    """Put an answer into an envelope: a frame, or the error that was met."""
    try:
        return sealed({}, answer())
    except AtlasError as error:
        kinds = (k.__name__ for k in type(error).__mro__ if k.__name__ in _ERRORS)
        name = next(kinds, TrunkError.__name__)
        return sealed({"error": name, "said": str(error)[:LONGEST_ERROR]}, b"")


def opened_answer(envelope: bytes) -> bytes:
    """Take the frame out of an answer.

    Raises
    ------
    AtlasError
        The trunk's own, or :class:`~atlas_flwr.errors.WireError`.
    """
    head, frame = _opened(envelope, "the trunk", "this client")
    if "error" not in head:
        return frame
    raise _ERRORS.get(str(head["error"]), TrunkError)(str(head.get("said", "")))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_wait(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value <= LONGEST_WAIT


def sealed(head: Mapping[str, Any], frame: bytes) -> bytes:
    """Put a head and a frame into an envelope."""
    told = json.dumps(head).encode()
    body = struct.pack("<I", len(told)) + told
    checksum = zlib.crc32(frame, zlib.crc32(body))
    return _FIXED.pack(MAGIC, VERSION, 0, checksum, len(told)) + told + frame


def _opened(envelope: bytes, sender: str, here: str) -> tuple[dict[str, Any], bytes]:
    if len(envelope) < _FIXED.size or envelope[: len(MAGIC)] != MAGIC:
        raise WireError(f"{len(envelope)} bytes that are no envelope of this library")
    _, version, _, checksum, length = _FIXED.unpack_from(envelope)
    if version != VERSION:
        raise WireError(
            f"{sender} speaks version {version} of the trunk's protocol, and {here} "
            f"version {VERSION}: install the same atlas-flwr on both"
        )
    rest = envelope[_FIXED.size :]
    if zlib.crc32(rest, zlib.crc32(struct.pack("<I", length))) != checksum:
        raise WireError("an envelope whose checksum is wrong: it was damaged")
    if length > min(LONGEST_HEAD, len(rest)):
        raise WireError(f"an envelope with a head of {length} bytes")
    try:
        head = json.loads(rest[:length])
        # JSON may escape halves of characters, which are no text and cannot be written.
        json.dumps(head, ensure_ascii=False).encode()
    except (UnicodeError, ValueError, RecursionError):
        raise WireError("an envelope whose head is not JSON") from None
    if not isinstance(head, dict):
        raise WireError("an envelope whose head is no object")
    return head, rest[length:]
