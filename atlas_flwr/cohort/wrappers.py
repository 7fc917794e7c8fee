# SPDX-License-Identifier: Apache-2.0
"""Flower's wrappers for differential privacy, which clusters make impossible."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType

from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Strategy,
)

from atlas_flwr.errors import AdapterError

__all__ = ["check_noise_arrives"]

WRAPPERS = (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)


def check_noise_arrives(strategy: Strategy, folds: bool, many: bool) -> None:
    """Refuse a wrapper for differential privacy whose noise no client would be sent.

    A wrapper tells the strategy inside nothing of itself, so it is looked for among the
    callers of this function.

    Parameters
    ----------
    strategy : Strategy
        The one that may be inside a wrapper.
    folds : bool
        Whether a part of what it sends is folded into the frozen weights.
    many : bool
        Whether it may hold several groups' arrays.

    Raises
    ------
    AdapterError
        If there is a wrapper, and ``folds`` or ``many``.
    """
    if not (folds or many):
        return
    for wrapper in _callers():
        if isinstance(wrapper, WRAPPERS):
            why = (
                "each cluster, or client, here has arrays of its own"
                if many
                else "what does not fit into their rank is folded into the frozen "
                "weights here"
            )
            raise AdapterError(
                f"{type(wrapper).__name__} cannot go round this "
                f"{type(strategy).__name__}: it clips and noises the one set of arrays "
                f"that all clients are sent, and {why}. Nobody would be sent the "
                "noise. Use clustering='none' (or num_clusters=1) with "
                "aggregation='truncate' or 'mean', or Flower's FedAvg; LocalDpMod "
                "works on the clients, with clusters too"
            )


def _callers() -> Iterator[object]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame.f_locals.get("self")
        frame = frame.f_back
