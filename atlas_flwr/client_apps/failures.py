# SPDX-License-Identifier: Apache-2.0
"""Errors of ours become error replies: one sentence, where Flower logs a traceback.

What is not ours is raised on, and Flower tells it in full.
"""

from __future__ import annotations

from collections.abc import Callable
from logging import WARNING

from flwr.app import Context, Error, Message

from atlas_flwr.errors import AtlasError, ConfigError
from atlas_flwr.log import log
from atlas_flwr.protocol.replies import CLIENT_APP_RAISED

__all__ = ["told_in_a_sentence"]


def told_in_a_sentence(
    message: Message, context: Context, call_next: Callable[..., Message]
) -> Message:
    """Answer a message; a mod of a ClientApp."""
    try:
        return call_next(message, context)
    except AtlasError as error:
        # A node's own config is not the run's, which is where ConfigError counts them.
        told = "; ".join(error.problems) if isinstance(error, ConfigError) else error
        reason = f"{type(error).__name__}: {told}"
        kind = message.metadata.message_type
        log(WARNING, "client %d, %s: %s", context.node_id, kind, reason)
        return Message(Error(CLIENT_APP_RAISED, reason), reply_to=message)
