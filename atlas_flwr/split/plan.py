# SPDX-License-Identifier: Apache-2.0
"""Where a model is cut."""

from __future__ import annotations

from dataclasses import dataclass

from atlas_flwr.errors import PlanError

__all__ = ["SplitPlan"]


@dataclass(frozen=True)
class SplitPlan:
    """Blocks on the client: ``head`` first ones, ``tail`` last ones.

    Attributes
    ----------
    head : int
        At least 1: what leaves the client must have passed a block, since embeddings
        alone can be looked up.
    tail : int, optional
        At least 1 for a U-shape, where labels and loss stay on the client. ``None`` is
        the vanilla split: the trunk ends the model and gets the labels.

    Raises
    ------
    PlanError
        If a number is out of range.
    """

    head: int
    tail: int | None = 1

    def __post_init__(self) -> None:
        if self.head < 1:
            raise PlanError(
                f"head={self.head}: a head has at least 1 block, or the trunk would "
                "get the embeddings, from which the text can be looked up"
            )
        if self.tail is not None and self.tail < 1:
            raise PlanError(
                f"tail={self.tail}: a U-shaped split has a tail of at least 1 block; "
                "for the vanilla split, which sends labels to the trunk, use tail=None"
            )

    @classmethod
    def parse(cls, text: str) -> SplitPlan:
        """Read ``"2/1"``, or ``"2/-"`` for a vanilla split."""
        head, slash, tail = text.partition("/")
        if not slash or not head.isdecimal() or not (tail.isdecimal() or tail == "-"):
            raise PlanError(
                f"cut {text!r}: write HEAD/TAIL, e.g. 2/1, or 2/- (vanilla)"
            )
        return cls(int(head), None if tail == "-" else int(tail))

    def __str__(self) -> str:
        return f"{self.head}/{'-' if self.tail is None else self.tail}"

    def check(self, num_layers: int) -> None:
        """Refuse the plan if it leaves no block to the trunk.

        Raises
        ------
        PlanError
            With the legal range.
        """
        if not self.trunk_range(num_layers):
            kind = "head" if self.tail is None else "head + tail"
            least = 2 if self.tail is None else 3
            if num_layers < least:
                raise PlanError(
                    f"a model of {num_layers} blocks cannot be cut {self}: it needs at "
                    f"least {least}"
                )
            raise PlanError(
                f"cut {self} of {num_layers} blocks leaves none to the trunk; allowed: "
                f"head >= 1 and {kind} <= {num_layers - 1}"
            )

    def trunk_range(self, num_layers: int) -> range:
        """Return the trunk's blocks, counted in the whole model."""
        return range(self.head, num_layers - (self.tail or 0))
