# SPDX-License-Identifier: Apache-2.0
"""What a client tells of the adapters that its check computed, as a record."""

from __future__ import annotations

from flwr.app import ConfigRecord, Message

from atlas_flwr.errors import AdapterError
from atlas_flwr.protocol import keys
from atlas_flwr.trunk.hosts.departures import Computed

__all__ = ["computed_of", "computed_record"]


def computed_record(computed: Computed) -> ConfigRecord:
    """Write it."""
    values = {"seed": computed.seed, "allowed": computed.allowed}
    return ConfigRecord({**values, "sketch": list(computed.sketch)})


def computed_of(reply: Message) -> Computed | None:
    """Read it; nothing where a client did not check.

    Raises
    ------
    AdapterError
        If a record is there that does not tell it.
    """
    told = reply.content.config_records.get(keys.COMPUTED)
    if told is None:
        return None
    seed, allowed, sketch = (told.get(key) for key in ("seed", "allowed", "sketch"))
    numbers = sketch if isinstance(sketch, list) else []
    if not isinstance(seed, int) or not isinstance(allowed, float):
        raise AdapterError(
            f"a client's record {keys.COMPUTED!r} has no seed, or no limit"
        )
    return Computed(seed, tuple(x for x in numbers if isinstance(x, float)), allowed)
