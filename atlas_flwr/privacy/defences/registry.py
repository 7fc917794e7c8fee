# SPDX-License-Identifier: Apache-2.0
"""All defences by name: a new one gets a line here."""

from __future__ import annotations

import math
from collections.abc import Mapping

from atlas_flwr.privacy.defences.base import NONE, Defence, Joined, Kind
from atlas_flwr.privacy.defences.gaussian import Gaussian
from atlas_flwr.privacy.defences.labels import RandomLabels
from atlas_flwr.privacy.defences.laplace import Laplace
from atlas_flwr.privacy.defences.mask import Mask
from atlas_flwr.privacy.defences.nopeek import NoPeek
from atlas_flwr.privacy.defences.santext import SanText
from atlas_flwr.privacy.defences.tokens import RandomTokens
from atlas_flwr.privacy.defences.topk import TopK

__all__ = ["DEFENCES", "parse_defence"]

# Answers at random would leave more than 999 of 1,000 tokens of any vocabulary as they
# are, and all labels: no defence.
MOST_EPSILON = 20.0
# The most distant answers are then as seldom as e^-30; a number of 53 bits, by which
# they are drawn, would never draw them at e^-37.
MOST_METRIC_EPSILON = 30.0

DEFENCES: Mapping[str, Kind] = {
    "none": Kind(lambda strength: NONE, "nothing", plain=True),
    "gaussian": Kind(
        Gaussian, "noise of so many times a usual position's size, both ways"
    ),
    "laplace": Kind(Laplace, "the same with Laplace noise of that deviation"),
    "topk": Kind(TopK, "only this share of a position's numbers, both ways", maximum=1),
    "nopeek": Kind(
        NoPeek, "a head trained to hide its text, with this weight in the loss"
    ),
    "labels": Kind(
        RandomLabels,
        "labels answered at random, private to this epsilon",
        maximum=MOST_EPSILON,
        example=1,
    ),
    "tokens": Kind(
        RandomTokens,
        "tokens answered at random, mostly by near ones, each private to this epsilon",
        maximum=MOST_EPSILON,
        example=10,
    ),
    "santext": Kind(
        SanText,
        "tokens answered at random, seldom by distant ones, private to this epsilon a "
        "unit of distance",
        maximum=MOST_METRIC_EPSILON,
        example=16,
    ),
    "mask": Kind(
        lambda strength: Mask(), "numbers, addresses and names replaced", plain=True
    ),
}


def parse_defence(text: str) -> Defence:
    """Read e.g. ``"gaussian:0.3"`` or ``"topk:0.1+gaussian:0.3"``.

    Raises
    ------
    ValueError
        With what is wrong, what is allowed and an example.
    """
    parts = [_one(part.strip()) for part in text.split("+")]
    if len(parts) == 1:
        return parts[0]
    names = [part.name for part in parts]
    if "none" in names or len(set(names)) < len(names):
        raise ValueError("what is joined by + must be different defences, and not none")
    answering = [part.name for part in parts if part.replaces_tokens]
    if len(answering) > 1:
        # Both would draw by one secret, and an attack reckon with the last one's odds.
        raise ValueError(f"{' and '.join(answering)} both answer each token; name one")
    return Joined(parts=tuple(parts))


def _one(text: str) -> Defence:
    name, colon, strength = text.partition(":")
    if name not in DEFENCES:
        raise ValueError(
            f"{name!r} is no defence: must be one of {', '.join(DEFENCES)}, with a "
            "strength behind a colon, e.g. gaussian:0.3"
        )
    kind = DEFENCES[name]
    if kind.plain:
        if colon:
            raise ValueError(f"{text!r}: {name} has no strength; write {name} alone")
        return kind.make(0.0)
    try:
        value = float(strength)
    except ValueError:
        value = math.nan
    if not (kind.above < value <= kind.maximum and math.isfinite(value)):
        most = f" and at most {kind.maximum:g}" if kind.maximum < math.inf else ""
        raise ValueError(
            f"{text!r}: the strength of {name} ({kind.about}) must be a number above "
            f"{kind.above:g}{most}, e.g. {name}:{kind.example:g}"
        )
    return kind.make(value)
