# SPDX-License-Identifier: Apache-2.0
"""Sums of a cluster's updates that a few bad clients cannot move far.

A client may send anything: its update a thousand times over, its reverse, or one that
was trained on wrong labels. See :mod:`atlas_flwr.robust` for what bounds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from logging import WARNING
from typing import TYPE_CHECKING, Literal

from atlas_flwr.options import ATLAS, Problem, option
from atlas_flwr.remedies.base import Blocks, Remedy, ServerHooks

if TYPE_CHECKING:
    from atlas_flwr.config.schema import RunConfig
    from atlas_flwr.lora.update import Update
    from atlas_flwr.robust import RobustRule

__all__ = ["RobustKeys", "RobustSums"]

ROBUST = ("norm-bound", "geometric-median", "trimmed")
_TOLD_BELOW = 0.5  # an update of which less than this share counts is told of
# One of which less counts is left out: what is so large that it must be shortened so
# far leaves the range of float32, and would spoil the sum or end the run.
_LEFT_OUT_BELOW = 1e-9


@dataclass(frozen=True)
class RobustKeys:
    """Keys of the run config."""

    robust: Literal["none", "norm-bound", "geometric-median", "trimmed"] = option(
        "none",
        "Against clients that send bad updates, on purpose or not. norm-bound cuts "
        "updates that are longer than update-bound times the median of their cluster; "
        "geometric-median moves a cluster to where most of its clients agree, and "
        "stands any minority; trimmed leaves out the bad-share that agrees least. The "
        "last two need three clients in a cluster, and cost accuracy where honest "
        "clients differ.",
        only=ATLAS,
    )
    update_bound: float = option(
        2.0,
        "robust: times the median of its cluster that the norm of a client's update, "
        "and its number of examples, may count.",
        minimum=1,
        only=ATLAS,
    )
    bad_share: float = option(
        0.25,
        "robust='trimmed': share of a cluster's clients, rounded up, that is left out; "
        "never half of them or more.",
        above=0,
        maximum=0.5,
        only=ATLAS,
    )


class RobustSums(Remedy):
    """Bounds what each client can do to its cluster."""

    name = "robust"

    def problems(self, config: RunConfig) -> Iterator[Problem]:
        """Want products that are added, of more than one client, and seen singly."""
        if config.robust != "none" and config.aggregation in ("mean", "none"):
            yield Problem(
                ("robust", "aggregation"),
                f"robust={config.robust!r}: it bounds sums of products, and "
                f"aggregation={config.aggregation!r} has none; set "
                "aggregation='both', or robust='none'",
            )
        if config.robust != "none" and config.secure_aggregation:
            yield Problem(
                ("robust", "secure-aggregation"),
                f"secure-aggregation=true with robust={config.robust!r}: it weighs "
                "each client's update, which a sum hides; set robust='none', or "
                "secure-aggregation=false",
            )
        readers = {"update_bound": ROBUST, "bad_share": ("trimmed",)}
        for field in fields(RobustKeys):
            names = readers.get(field.name, ())
            value = getattr(config, field.name)
            if names and config.robust not in names and value != field.default:
                key = field.name.replace("_", "-")
                yield Problem(
                    ("robust", key),
                    f"{key}={value}: robust={config.robust!r} does not read it; leave "
                    f"it at {field.default}, or set robust={' or '.join(names)}",
                )

    def server(self, config: RunConfig, blocks: Blocks) -> ServerHooks:
        """Bound, if asked to."""
        if config.robust == "none":
            return ServerHooks()
        from atlas_flwr.robust import robust_rule

        rule = robust_rule(config.robust, config.update_bound, config.bad_share)
        return BoundedUpdates(rule)


@dataclass(frozen=True)
class BoundedUpdates(ServerHooks):
    """Lets a rule say how much of each member's update counts.

    Attributes
    ----------
    rule : RobustRule
        The rule.
    """

    rule: RobustRule

    def counts(
        self, group: str, updates: Callable[[], Sequence[Update]]
    ) -> Sequence[float] | None:
        """Ask the rule, and name the clients whose updates count for little."""
        import numpy as np

        from atlas_flwr.log import log
        from atlas_flwr.lora.update import inner_products

        found = updates()
        weights = np.array([update.weight for update in found])
        gram = inner_products(found)
        counts, shares = self.rule.coefficients(gram, weights), weights / weights.sum()
        counts = np.where(counts < _LEFT_OUT_BELOW * shares, 0.0, counts)
        for update, c, p, square in zip(
            found, counts, shares, np.diag(gram), strict=True
        ):
            if c < _TOLD_BELOW * p:
                log(
                    WARNING,
                    "robust=%s, cluster %s: of client %s's update (norm %.3g, share "
                    "%.3g of the examples) %.2g counts",
                    self.rule.name,
                    group,
                    update.client,
                    max(square, 0.0) ** 0.5,
                    p,
                    c,
                )
        return [float(c) for c in counts]
