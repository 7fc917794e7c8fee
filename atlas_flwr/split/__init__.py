# SPDX-License-Identifier: Apache-2.0
"""The cut: plan, partition, crossing, split model."""

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.split.cut import Parts, load_parts, partition, trunk_view
    from atlas_flwr.split.model import SplitModel
    from atlas_flwr.split.part import PartInfo, part_info
    from atlas_flwr.split.plan import SplitPlan
    from atlas_flwr.split.summary import SUMMARY_KEY, Summary, attach_summary

__all__ = [
    "SUMMARY_KEY",
    "PartInfo",
    "Parts",
    "SplitModel",
    "SplitPlan",
    "Summary",
    "attach_summary",
    "load_parts",
    "part_info",
    "partition",
    "trunk_view",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "SUMMARY_KEY": "summary",
        "PartInfo": "part",
        "Parts": "cut",
        "SplitModel": "model",
        "SplitPlan": "plan",
        "Summary": "summary",
        "attach_summary": "summary",
        "load_parts": "cut",
        "part_info": "part",
        "partition": "cut",
        "trunk_view": "cut",
    },
)
