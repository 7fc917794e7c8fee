# SPDX-License-Identifier: Apache-2.0
"""Gradients that do not fit the trunk's answers end a client's part in the round.

See :mod:`atlas_flwr.privacy.watched`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atlas_flwr.options import ADAPTER_STRATEGIES, Problem, option
from atlas_flwr.remedies.base import ClientHooks, Remedy, RoundContext

if TYPE_CHECKING:
    from atlas_flwr.config.schema import RunConfig
    from atlas_flwr.types import TrunkClient

__all__ = ["GradientWatch", "WatchKeys"]

# What others round by is as large as what is compared.
PRECISE = {"codec": ("raw", "auto"), "dtype": ("float32",)}


@dataclass(frozen=True)
class WatchKeys:
    """Keys of the run config."""

    watch: float = option(
        0.0,
        "In this share of its training steps, drawn in secret, a client asks the trunk "
        "for one more answer, near the first, and compares what it differs by with the "
        "gradient that comes back: 0 never, 1 in all. If they do not fit, the trunk is "
        "hijacking the client or broken, and the client's part in the round ends with "
        "an error. Each such step costs one more forward pass; try 0.25. A trunk that "
        "knows of it can evade it.",
        minimum=0,
        maximum=1,
        only=ADAPTER_STRATEGIES,
    )


class GradientWatch(Remedy):
    """Compares gradients with answers."""

    name = "watch"

    def problems(self, config: RunConfig) -> Iterator[Problem]:
        """Want gradients that come alone, and precisely."""
        if not config.watch > 0:
            return
        if config.split != "u-shaped":
            yield Problem(
                ("watch", "split"),
                f"watch={config.watch}: with split={config.split!r} no answer comes "
                "before its gradient, with which it could be compared; set "
                "split='u-shaped', or watch=0.0",
            )
        for key, allowed in PRECISE.items():
            if (given := getattr(config, key)) not in allowed:
                yield Problem(
                    ("watch", key),
                    f"watch={config.watch}: {key}={given!r} rounds by more than what "
                    f"is compared; set {key}={allowed[0]!r}, or watch=0.0",
                )
        yield from _too_few(config)
        if config.peer_checks > 0:
            yield Problem(
                ("peer-checks", "watch"),
                f"peer-checks={config.peer_checks} with watch={config.watch}: who "
                "repeats a round itself sees more than a watch, and would take its "
                "questions for an evaluation's; set one of the two to 0.0",
            )
        if config.in_flight > 1:
            yield Problem(
                ("in-flight", "watch"),
                f"in-flight={config.in_flight} with watch={config.watch}: answers are "
                "compared one batch after the other; set in-flight=1, or watch=0.0",
            )

    def client(self, now: RoundContext) -> ClientHooks:
        """Stand before the trunk, if steps are to be watched."""
        share = now.config.watch
        return _Watching(share) if share else ClientHooks()


def _too_few(config: RunConfig) -> Iterator[Problem]:
    """Want rounds in which so many texts are compared that something can be said."""
    from atlas_flwr.privacy.watched import TEXTS

    rows, batches = config.batch_size, _crossing(config)
    wanted = -(-TEXTS // rows)
    # Where one batch is enough, a small share still finds what lies in every round.
    if batches < wanted or (wanted > 1 and config.watch * batches < wanted):
        yield Problem(
            ("watch", "batch-size", "local-steps"),
            f"watch={config.watch}: of a round's {batches} batches of {rows} whose "
            f"gradients are sure to cross some {config.watch * batches:g} are "
            f"compared, and nothing is said of fewer than {TEXTS} texts; raise watch, "
            "batch-size or local-steps, or set watch=0.0",
        )


def _crossing(config: RunConfig) -> int:
    """Return of how many batches of a round the gradients cross, come what may."""
    batches = config.local_steps * config.accumulate
    if config.skip_gradients > 0:
        return min(batches, 2)  # the first and the last
    return -(-batches // (1 + config.auxiliary_steps))


class _Watching(ClientHooks):
    def __init__(self, share: float) -> None:
        self.share = share

    def trunk(self, trunk: TrunkClient) -> TrunkClient:
        from atlas_flwr.privacy.watched import WatchedTrunk

        return WatchedTrunk(trunk, self.share)
