# SPDX-License-Identifier: Apache-2.0
"""The words that server and client have agreed on: message kinds, records, entries."""

from __future__ import annotations

__all__ = [
    "ALPHA",
    "ANSWERS",
    "COMPUTED",
    "DESCRIBE",
    "FINGERPRINT",
    "IMPORTANCE",
    "LINK",
    "LINK_CODEC",
    "NUM_EXAMPLES",
    "PLAN",
    "POOLED_CLIENTS",
    "POOLED_NODES",
    "PROFILE",
    "PROMPTS",
    "REFERENCES",
    "RUN_CONFIG",
    "RUN_ID",
    "SAVED_ROUNDS",
    "SCORED",
    "SCORE_NAMES",
    "SCORE_VALUES",
    "SERVER_ROUND",
    "SKETCH",
    "TRUNK_ADDRESS",
    "TRUNK_ARRAYS",
    "TRUNK_CA",
    "TRUNK_TOKEN",
    "WRITTEN",
]

# Kinds of messages besides Flower's own.
DESCRIBE = "query.describe"
FINGERPRINT = "query.fingerprint"

# Entries of a message's ConfigRecord.
IMPORTANCE = "importance"  # measure it; also the record that answers
PLAN = "plan"  # the client's cut
POOLED_NODES = "pooled-nodes"  # train on the data of so many clients
POOLED_CLIENTS = "pooled-clients"  # which ones, by their ids
RUN_CONFIG = "run-config"  # the resolved configuration, YAML
RUN_ID = "run-id"
SAVED_ROUNDS = "saved-rounds"  # from which the run can go on, where there are some
SERVER_ROUND = "server-round"  # Flower's strategies send it
TRUNK_ADDRESS = "trunk-address"
TRUNK_ARRAYS = "trunk-arrays"  # record of the trunk's adapters, for a spot check
TRUNK_CA = "trunk-ca"  # certificate of the trunk's authority, PEM, if it speaks TLS
TRUNK_TOKEN = "trunk-token"

# Records and entries of replies.
ALPHA = "lora-alpha"  # metric of a client whose alpha is its own
COMPUTED = "computed"  # record of what its adapters on the trunk should be
LINK = "link"  # record of how the client called its trunk, with the entry below
LINK_CODEC = "codec"
NUM_EXAMPLES = "num-examples"  # Flower's name
PROFILE = "profile"
SKETCH = "sketch"
WRITTEN = "written"  # record of a client's answers, with the entries below
ANSWERS = "answers"  # texts, as many as may be shown
PROMPTS = "prompts"
REFERENCES = "references"
SCORED = "scored"  # how many answers the scores are means of
SCORE_NAMES = "score-names"
SCORE_VALUES = "score-values"
