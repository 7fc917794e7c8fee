# SPDX-License-Identifier: Apache-2.0
"""ATLAS's ClientApp: describe, fingerprint, train, evaluate.

Every message brings the resolved run config, so that a resumed run's clients work with
the configuration that it began with.
"""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import (
    Array,
    ArrayRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from atlas_flwr.client_apps.failures import told_in_a_sentence
from atlas_flwr.client_apps.resident import answered_by_resident
from atlas_flwr.protocol import keys

app = ClientApp(mods=[told_in_a_sentence, answered_by_resident])


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Tell the client's id, its memory, and (for reports) its task."""
    from atlas_flwr.client_apps.round import config_of, profile_of

    profile = profile_of(config_of(message, context), context)
    return Message(RecordDict({keys.PROFILE: profile.to_record()}), reply_to=message)


@app.query("fingerprint")
def fingerprint(message: Message, context: Context) -> Message:
    """Send the sketch of this client's gradients at the shared start."""
    from atlas_flwr.client_apps.round import ClientRound

    sketch, importance = ClientRound.of(message, context).fingerprint()
    content = RecordDict({"fingerprint": ArrayRecord({keys.SKETCH: Array(sketch)})})
    content[keys.IMPORTANCE] = MetricRecord(dict(importance))
    return Message(content, reply_to=message)


def masked(
    message: Message, context: Context, call_next: Callable[..., Message]
) -> Message:
    """Send the update in a secure sum alone, where the run says so or the server."""
    from atlas_flwr.client_apps.round import config_of
    from atlas_flwr.client_apps.secure import secure_mod
    from atlas_flwr.protocol.sums import SECURE

    asked = SECURE in message.content
    if asked or config_of(message, context).secure_aggregation:
        return secure_mod(message, context, call_next)
    return call_next(message, context)


@app.train(mods=[masked])
def train(message: Message, context: Context) -> Message:
    """Train the adapters on the client's side, and through its session the trunk's."""
    from atlas_flwr.client_apps.round import ClientRound

    arrays, metrics, of_trunk = ClientRound.of(message, context).train()
    reply = _reply(message, metrics, arrays)
    reply.content.update(of_trunk)
    return reply


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the model on the client's test examples."""
    from atlas_flwr.client_apps.round import ClientRound

    metrics, answers = ClientRound.of(message, context).evaluate()
    reply = _reply(message, metrics)
    if answers is not None:
        reply.content[keys.WRITTEN] = answers
    return reply


def _reply(
    message: Message,
    metrics: dict[str, int | float | list[int]],
    arrays: ArrayRecord | None = None,
) -> Message:
    content = RecordDict({"metrics": MetricRecord(dict(metrics))})
    if arrays is not None:
        content["arrays"] = arrays
    return Message(content, reply_to=message)
