# SPDX-License-Identifier: Apache-2.0
"""What has been trained, put to use: a run's adapters answer, over the cut."""

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.serving.choice import Choice, Chosen, chosen
    from atlas_flwr.serving.conversation import Conversation
    from atlas_flwr.serving.held_out_prompts import HeldOut, dealt_again, held_out
    from atlas_flwr.serving.model import Served, served
    from atlas_flwr.serving.prompts import PromptForm, Prompts, read_prompts
    from atlas_flwr.serving.trunks import TRUNKS
    from atlas_flwr.train.answers import Answer, Decoding, answered

__all__ = [
    "TRUNKS",
    "Answer",
    "Choice",
    "Chosen",
    "Conversation",
    "Decoding",
    "HeldOut",
    "PromptForm",
    "Prompts",
    "Served",
    "answered",
    "chosen",
    "dealt_again",
    "held_out",
    "read_prompts",
    "served",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "TRUNKS": "trunks",
        "Answer": "atlas_flwr.train.answers",
        "Choice": "choice",
        "Chosen": "choice",
        "Conversation": "conversation",
        "Decoding": "atlas_flwr.train.answers",
        "HeldOut": "held_out_prompts",
        "PromptForm": "prompts",
        "Prompts": "prompts",
        "Served": "model",
        "answered": "atlas_flwr.train.answers",
        "chosen": "choice",
        "dealt_again": "held_out_prompts",
        "held_out": "held_out_prompts",
        "read_prompts": "prompts",
        "served": "model",
    },
)
