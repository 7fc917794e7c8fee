# SPDX-License-Identifier: Apache-2.0
"""The seam of defences: what a client does to what it sends, before it leaves.

A defence is one file beside this one and one line in ``registry.py``. Every method's
default changes nothing. An attacker knows which one is on, and asks the same methods.

Shapes: D width; what comes before it is a batch's (B, T), or a text's (T,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from atlas_flwr.data import Example
    from atlas_flwr.privacy.defences.vocabulary import Vocabulary

__all__ = ["NONE", "Defence", "Joined", "Kind"]


@dataclass(frozen=True)
class Defence:
    """One defence; this one does nothing.

    Attributes
    ----------
    name : str
        Key in :data:`~atlas_flwr.privacy.DEFENCES`.
    strength : float
        What stands behind its name.
    """

    name: ClassVar[str] = "none"
    strength: float = 0.0

    def __str__(self) -> str:
        return f"{self.name}:{self.strength:g}" if self.strength else self.name

    @property
    def draws(self) -> bool:
        """Whether activations are changed at random."""
        return False

    @property
    def changes_wire(self) -> bool:
        """Whether it changes what crosses; else it changes what is read or learned."""
        return False

    def activations(
        self, hidden: Tensor, generator: torch.Generator | None, scale: float = 0.0
    ) -> Tensor:
        """Change hidden states (..., D) that are to be sent.

        Parameters
        ----------
        hidden : Tensor
            Real positions alone.
        generator : torch.Generator, optional
            ``None`` leaves out what is drawn: an attacker's expectation.
        scale : float
            Root mean square of a usual position; 0 is the median of ``hidden``.
        """
        return hidden

    def gradients(self, grad: Tensor, generator: torch.Generator) -> Tensor:
        """Change gradients (..., D) that are to be sent."""
        return grad

    @property
    def shapes_head(self) -> bool:
        """Whether it adds to the loss that the head is trained by."""
        return False

    def penalty(self, embeds: Tensor, hidden: Tensor) -> Tensor:
        """Return what is added to a step's loss, a scalar.

        Parameters
        ----------
        embeds : Tensor
            Shape (N, D): embeddings of the step's tokens.
        hidden : Tensor
            Shape (N, D): what the head makes of them, before anything is changed.
        """
        return hidden.new_zeros(())

    @property
    def needs_classes(self) -> bool:
        """Whether it is for tasks with classes alone."""
        return False

    def examples(
        self, examples: Sequence[Example], classes: int, secret: bytes, *, learned: bool
    ) -> Sequence[Example]:
        """Change a client's own examples, before anything at all is made of them.

        Parameters
        ----------
        examples : Sequence[Example]
            Of one task.
        classes : int
            Of it; 0 where it has none.
        secret : bytes
            The client's own: what is drawn by it is drawn alike in every round.
        learned : bool
            Whether they are trained on; else the client is scored on them.
        """
        return examples

    @property
    def replaces_tokens(self) -> bool:
        """Whether the head reads other tokens than a text's own."""
        return False

    def tokens(
        self, texts: Sequence[Sequence[int]], vocabulary: Vocabulary, secret: bytes
    ) -> list[list[int]]:
        """Change a client's texts' tokens, before its head reads them.

        Parameters
        ----------
        texts : Sequence[Sequence[int]]
            Without template and label.
        vocabulary : Vocabulary
            The model's.
        secret : bytes
            As for :meth:`examples`.
        """
        return [list(text) for text in texts]

    def token_odds(self, read: int, tokens: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Return how likely tokens make the one that was read.

        Parameters
        ----------
        read : int
            What stands in the text that the head has read.
        tokens : Tensor
            Shape (N,): what may have stood there.
        vocabulary : Vocabulary
            The model's.

        Returns
        -------
        Tensor
            Shape (N,): the log of each one's probability of being read as that.
        """
        found: Tensor = (tokens == read).double().log()
        return found

    def unlikeliness(
        self, received: Tensor, candidates: Tensor, scale: float
    ) -> Tensor:
        """Return minus the log-likelihood of what was received, up to a constant.

        Parameters
        ----------
        received : Tensor
            Shape (D,).
        candidates : Tensor
            Shape (N, D): what would be sent on average.
        scale : float
            As for :meth:`activations`.

        Returns
        -------
        Tensor
            Shape (N,); the least is the likeliest. Where nothing is drawn, a relative
            distance.
        """
        off: Tensor = (candidates - received).norm(dim=-1) / received.norm()
        return off


NONE = Defence()


@dataclass(frozen=True)
class Joined(Defence):
    """Several defences, one after the other.

    Attributes
    ----------
    parts : tuple[Defence, ...]
        In the order in which they act.
    """

    parts: tuple[Defence, ...] = ()

    def __str__(self) -> str:
        return "+".join(map(str, self.parts))

    @property
    def draws(self) -> bool:
        """Whether one of them does."""
        return any(part.draws for part in self.parts)

    @property
    def changes_wire(self) -> bool:
        """Whether one of them does."""
        return any(part.changes_wire for part in self.parts)

    def activations(
        self, hidden: Tensor, generator: torch.Generator | None, scale: float = 0.0
    ) -> Tensor:
        """Let each change them."""
        for part in self.parts:
            hidden = part.activations(hidden, generator, scale)
        return hidden

    def gradients(self, grad: Tensor, generator: torch.Generator) -> Tensor:
        """Let each change them."""
        for part in self.parts:
            grad = part.gradients(grad, generator)
        return grad

    @property
    def shapes_head(self) -> bool:
        """Whether one of them does."""
        return any(part.shapes_head for part in self.parts)

    def penalty(self, embeds: Tensor, hidden: Tensor) -> Tensor:
        """Add what each adds."""
        import torch

        return torch.stack([p.penalty(embeds, hidden) for p in self.parts]).sum()

    @property
    def needs_classes(self) -> bool:
        """Whether one of them is."""
        return any(part.needs_classes for part in self.parts)

    def examples(
        self, examples: Sequence[Example], classes: int, secret: bytes, *, learned: bool
    ) -> Sequence[Example]:
        """Let each change them."""
        for part in self.parts:
            examples = part.examples(examples, classes, secret, learned=learned)
        return examples

    @property
    def replaces_tokens(self) -> bool:
        """Whether one of them does."""
        return any(part.replaces_tokens for part in self.parts)

    def tokens(
        self, texts: Sequence[Sequence[int]], vocabulary: Vocabulary, secret: bytes
    ) -> list[list[int]]:
        """Let each change them."""
        read = [list(text) for text in texts]
        for part in self.parts:
            read = part.tokens(read, vocabulary, secret)
        return read

    def token_odds(self, read: int, tokens: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Ask the one that replaces them."""
        replacing = [part for part in self.parts if part.replaces_tokens]
        judge = replacing[-1] if replacing else NONE
        return judge.token_odds(read, tokens, vocabulary)

    def unlikeliness(
        self, received: Tensor, candidates: Tensor, scale: float
    ) -> Tensor:
        """Ask the last one that draws."""
        drawing = [part for part in self.parts if part.draws]
        judge = drawing[-1] if drawing else NONE
        return judge.unlikeliness(received, candidates, scale)


@dataclass(frozen=True)
class Kind:
    """A defence that can be asked for.

    Attributes
    ----------
    make : Callable[[float], Defence]
        By its strength.
    about : str
        What it does, and what its strength is.
    above, maximum : float
        Strengths that are allowed: above the one, at most the other.
    plain : bool
        Whether it has no strength.
    example : float
        A strength that is worth a try, for messages.
    """

    make: Callable[[float], Defence]
    about: str
    above: float = 0.0
    maximum: float = float("inf")
    plain: bool = False
    example: float = 0.3
