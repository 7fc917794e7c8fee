# SPDX-License-Identifier: Apache-2.0
"""Keys of the run config: where the model is split, and what crosses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from atlas_flwr.options import ADAPTER_STRATEGIES, option

__all__ = ["CutConfig"]


@dataclass(frozen=True)
class CutConfig:
    """Where the model is split, and what crosses."""

    split: Literal["u-shaped", "vanilla", "none"] = option(
        "u-shaped",
        "u-shaped keeps labels and loss on the client, in two round trips a step. "
        "vanilla sends labels to the trunk, in one; for language models the labels are "
        "the text. From either, a trunk can read the text (docs/threat-model.md). none "
        "trains the whole model on every client, larger devices getting higher "
        "lora-ranks.",
        only=ADAPTER_STRATEGIES,
    )
    cut: str = option(
        "auto",
        "Blocks on the client as HEAD/TAIL, e.g. 2/1 (vanilla: 2/-), for every client, "
        "or one for each of devices, in their order; a node config may have its own. "
        "auto chooses for each by its memory. More blocks on the client cost it more "
        "and spare the trunk; they do not hide its text from who tries guesses through "
        "the public head (docs/threat-model.md).",
        only=ADAPTER_STRATEGIES,
    )
    max_head: int = option(
        4,
        "Most blocks in a head that cut='auto' considers. Each costs the client time "
        "and spares the trunk as much; none of them hides the client's text.",
        minimum=1,
        only=ADAPTER_STRATEGIES,
    )
    summary_positions: int = option(
        0,
        "Learned positions into which the head reads a text, and which alone cross the "
        "cut, with one constant position: so many rows for any length. 0 lets the "
        "whole text cross. For tasks that end in a label; 4 and a head of 8 blocks are "
        "a beginning, and half of the model loses least (docs/summary-positions.md).",
        minimum=0,
        maximum=256,
        only=ADAPTER_STRATEGIES,
    )
    codec: str = option(
        "auto",
        "How tensors cross the cut. raw is exact; lossy codecs save bytes and may cost "
        "accuracy, gradients more than activations. auto is raw where the trunk is on "
        "the client's machine; else a client measures its link as its session begins, "
        "and takes raw, int8 or int4 by that (docs/codecs.md).",
        only=ADAPTER_STRATEGIES,
    )
