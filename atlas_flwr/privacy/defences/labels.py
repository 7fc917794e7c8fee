# SPDX-License-Identifier: Apache-2.0
"""Labels are answered at random, before anything is made of them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from atlas_flwr.privacy.defences.base import Defence

if TYPE_CHECKING:
    from atlas_flwr.data import Example

__all__ = ["RandomLabels"]

DRAWN = 2**64


@dataclass(frozen=True)
class RandomLabels(Defence):
    """Randomised response (Warner, 1965) with k answers, private to epsilon.

    Of k classes, the true one is answered with probability p = e^eps / (e^eps + k - 1),
    and each other with q = 1 / (e^eps + k - 1). **Proof.** For any two classes y and y'
    and any answer o, P(o | y) is p or q, and so is P(o | y'); hence P(o | y) / P(o |
    y') <= p / q = e^eps, which is local differential privacy of the label. All that a
    client computes of its training examples, hidden states, gradients, adapters,
    fingerprints, importances and metrics, comes after the answer and sees no truth, so
    that it is as private (post-processing).

    An answer is drawn once for each example, copies of a text each by themselves, by a
    secret that never leaves the client: it is the same in all rounds of a run, which
    therefore cost epsilon together. Another run draws anew, and costs epsilon more, as
    does the loss of the client's cache. What is protected is each label and not the
    text, nor the labels of test examples, of which a client tells its score.
    """

    name: ClassVar[str] = "labels"

    @property
    def needs_classes(self) -> bool:
        """It does."""
        return True

    def kept(self, classes: int) -> float:
        """Return how probably the true class is answered."""
        return 1 / (1 + (classes - 1) * math.exp(-self.strength))

    def examples(
        self, examples: Sequence[Example], classes: int, secret: bytes, *, learned: bool
    ) -> Sequence[Example]:
        """Answer the labels that are trained on."""
        if not learned:
            return examples
        seen: Counter[str] = Counter()
        answered = []
        for example in examples:
            copy = seen[example.text]
            answered.append(self._answered(example, copy, classes, secret))
            seen[example.text] += 1
        return answered

    def _answered(
        self, example: Example, copy: int, classes: int, secret: bytes
    ) -> Example:
        # Copies that shared a draw would tell whether their true labels are the same.
        said = f"{copy}:{example.label}:{example.text}".encode()
        drawn = hashlib.blake2b(said, key=secret, digest_size=16).digest()
        first, second = (int.from_bytes(part) for part in (drawn[:8], drawn[8:]))
        if first < self.kept(classes) * DRAWN:
            return replace(example, true_label=example.label)
        other = second % (classes - 1)
        answer = other + (other >= example.label)
        return replace(example, label=answer, true_label=example.label)
