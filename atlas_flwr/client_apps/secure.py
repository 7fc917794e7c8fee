# SPDX-License-Identifier: Apache-2.0
"""A Flower mod that sends a client's update under masks that cancel in the sum.

The client's side of :class:`atlas_flwr.grids.secure.SecureGrid`, which says what
is hidden from whom. A key pair lives for one training message and one masked update:
both are taken out of the client's state before the update is sent, so that no mask is
ever used twice, whatever the server asks.

Two clients' key is HKDF-SHA256 of their X25519 secret and both public keys (RFC 5869,
RFC 7748). What the masks are for, and so the masks, is a hash of all public keys of the
group, fresh in each round: clients that were told of unlike groups send what does not
add up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    RecordDict,
)

from atlas_flwr.clustering import with_masks
from atlas_flwr.errors import DataError
from atlas_flwr.protocol.keys import ALPHA
from atlas_flwr.protocol.sketches import FEWEST_SKETCHED, SketchPlan
from atlas_flwr.protocol.sums import FEWEST, SECURE, SumLayout

__all__ = ["secure_mod"]


def secure_mod(
    message: Message, context: Context, call_next: Callable[..., Message]
) -> Message:
    """Train as the app does, and send the update in a secure sum alone.

    Give it to the app, ``ClientApp(mods=[secure_mod])``, before mods that change the
    update. It refuses to train for a server that does not ask for a secure sum. Other
    messages than training pass.

    The reply needs one ArrayRecord, of the names and shapes that were sent, and one
    MetricRecord of numbers with the weight; other records are not sent. Until the
    second step the update waits, with the key, in the client's ``context.state``. Where
    the server asks for sketches of products, these are what is sent.

    Raises
    ------
    DataError
        If the server asks for the update in plain, or for what the client has no update
        for; if the group that it names has fewer than two clients (three, for
        sketches), or is not this client's; if the update cannot be summed (see
        :meth:`~atlas_flwr.protocol.sums.SumLayout.vector`).
    """
    if message.metadata.message_type.partition(".")[0] != MessageType.TRAIN:
        return call_next(message, context)
    asked = message.content.config_records.get(SECURE)
    if asked is None:
        raise DataError(
            "the server asks for an update that is not masked, and this client sends "
            "none: start the strategy with SecureGrid(grid, strategy)"
        )
    if "public-keys" in asked:
        return _send_masked(message, context, asked)
    return _train(message, context, call_next, asked)


def _train(
    message: Message,
    context: Context,
    call_next: Callable[..., Message],
    asked: ConfigRecord,
) -> Message:
    """Train, keep the update, and answer with a public key."""
    del message.content[SECURE]
    (sent,) = message.content.array_records.values()
    clients, bits = int(str(asked["clients"])), int(str(asked["fraction-bits"]))
    plan = SketchPlan.from_record(asked)
    how = (clients, bits, str(asked["weighted-by"]))
    layout = SumLayout(plan.arrays(sent), *how) if plan else SumLayout.of(sent, *how)
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    arrays = [*reply.content.array_records.values()]
    metrics = [*reply.content.metric_records.values()]
    if len(arrays) != 1 or len(metrics) != 1:
        raise DataError(
            f"a reply with {len(arrays)} ArrayRecords and {len(metrics)} "
            "MetricRecords; a secure sum takes one of each"
        )
    if plan and ALPHA in metrics[0]:
        raise DataError(
            f"its LoRA alpha ({ALPHA!r}) is its own, which a sum cannot tell: give the "
            "strategy lora_alpha, the same for all clients"
        )
    summed = plan.sketched(sent, arrays[0]) if plan else arrays[0]
    vector = layout.vector(summed, metrics[0])
    private = X25519PrivateKey.generate()
    context.state[SECURE] = ArrayRecord({"words": Array(vector.words)})
    context.state[f"{SECURE}-key"] = ConfigRecord(
        {
            "private-key": private.private_bytes_raw(),
            "clients": clients,
            "fewest": FEWEST_SKETCHED if plan else FEWEST,
        }
    )
    public = private.public_key().public_bytes_raw()
    offer = ConfigRecord({"public-key": public, "metrics": list(vector.metrics)})
    return Message(RecordDict({SECURE: offer}), reply_to=message)


def _send_masked(message: Message, context: Context, asked: ConfigRecord) -> Message:
    """Mask the update that was kept, for the group that the server names."""
    if SECURE not in context.state:
        raise DataError(
            "this client has no update that it has not sent already; an update is "
            "masked once"
        )
    (words,) = context.state.array_records[SECURE].values()
    kept = context.state.config_records[f"{SECURE}-key"]
    del context.state[SECURE], context.state[f"{SECURE}-key"]
    nodes = cast(list[str], asked["nodes"])
    keys = cast(list[bytes], asked["public-keys"])
    group = dict(zip(nodes, keys, strict=True))
    private = X25519PrivateKey.from_private_bytes(cast(bytes, kept["private-key"]))
    me = str(message.metadata.dst_node_id)
    mine = private.public_key().public_bytes_raw()
    fewest, most = int(str(kept["fewest"])), int(str(kept["clients"]))
    fits = fewest <= len(nodes) == len(group) <= most
    if group.pop(me, None) != mine or not fits:
        raise DataError(
            f"a group of {len(nodes)} clients; it must be of {fewest} to {most}, each "
            "named once, this client among them with the key that it sent"
        )
    masked = with_masks(
        np.asarray(words.numpy(), np.uint64),
        me,
        {other: _shared(private, mine, key) for other, key in group.items()},
        purpose=_purpose({**group, me: mine}),
    )
    content = RecordDict({SECURE: ArrayRecord({"masked": Array(masked)})})
    return Message(content, reply_to=message)


def _shared(private: X25519PrivateKey, mine: bytes, other: bytes) -> bytes:
    """Return the key of two clients, the same for both."""
    secret = private.exchange(X25519PublicKey.from_public_bytes(other))
    info = b"atlas-flwr secure sum" + min(mine, other) + max(mine, other)
    return HKDF(SHA256(), length=32, salt=None, info=info).derive(secret)


def _purpose(group: Mapping[str, bytes]) -> str:
    """Name a group by its members and their keys."""
    told = "\n".join(f"{node} {group[node].hex()}" for node in sorted(group))
    return f"secure sum of {hashlib.sha256(told.encode()).hexdigest()}"
