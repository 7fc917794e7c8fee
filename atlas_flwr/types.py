# SPDX-License-Identifier: Apache-2.0
"""The nouns that several layers share: sides, roles, and the seam to the trunk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "AUTO_CODEC",
    "MOST_IN_FLIGHT",
    "NO_LABEL",
    "Continuation",
    "LossReply",
    "OptimizerSpec",
    "Role",
    "Side",
    "TrunkCall",
    "TrunkClient",
]

AUTO_CODEC = "auto"  # in the place of a codec's name: what suits the link
MOST_IN_FLIGHT = 64  # batches of one client that wait for the trunk at once
NO_LABEL = -100  # PyTorch's and Hugging Face's: a place without a label


class Side(StrEnum):
    """Which part of the split model."""

    HEAD = "head"
    TRUNK = "trunk"
    TAIL = "tail"


class Role(StrEnum):
    """What a tensor on the wire is, so that a codec may treat it accordingly."""

    ACTIVATION = "activation"
    GRADIENT = "gradient"
    ADAPTER = "adapter"
    FINGERPRINT = "fingerprint"
    LOGITS = "logits"


@dataclass(frozen=True)
class OptimizerSpec:
    """AdamW as both sides of the cut run it.

    Attributes
    ----------
    lr : float
        Learning rate.
    betas : tuple[float, float]
        AdamW's decay rates.
    eps : float
        AdamW's epsilon.
    weight_decay : float
        Decoupled weight decay.
    accumulate : int
        Backward passes whose gradients are summed before a step: each is of a share of
        the step's loss.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    accumulate: int = 1


@dataclass(frozen=True)
class TrunkCall:
    """What one forward pass through the trunk needs.

    Attributes
    ----------
    hidden : Tensor
        Smashed data, shape (B, T, D): the head's output.
    attention_mask : Tensor, optional
        Shape (B, T), 1 where there is a token.
    position_ids : Tensor, optional
        Shape (B, T).
    step : int, optional
        Number of the training step, unique in its session; ``None`` for a pass that no
        backward follows.
    padding_unread : bool
        Whether nobody reads the answer where the mask has 0: it may be anything there,
        and its gradient is zero.
    share : float
        Of a loss that the trunk computes: its part of an optimiser step, by which it is
        scaled.
    loss_alone : bool
        Whether the trunk answers no logits beside a loss, and a causal model computes
        none where there is no label.
    head_learns : bool
        Whether anything before the cut is trained: if not, nobody reads d loss / d
        hidden, and ``backward`` may return ``None``.
    """

    hidden: Tensor
    attention_mask: Tensor | None = None
    position_ids: Tensor | None = None
    step: int | None = None
    padding_unread: bool = False
    share: float = 1.0
    loss_alone: bool = False
    head_learns: bool = True


@dataclass(frozen=True)
class Continuation:
    """Which texts a call goes on with, of those that a trunk keeps for a session.

    Attributes
    ----------
    texts : int
        Their number in the session.
    turn : int
        Number of the call among those of these texts. Call 0 brings them whole, and
        what is kept under their number is forgotten.
    order : Tensor, optional
        Shape (B,), int64: where each row of the call was among the rows of the call
        before. ``None``: where it is.
    past : int, optional
        Positions that stand before the call's: those behind them, which were drafts,
        are taken back. ``None`` in all calls of texts without drafts.
    """

    texts: int
    turn: int
    order: Tensor | None = None
    past: int | None = None


@dataclass(frozen=True)
class LossReply:
    """What a vanilla trunk, which ends the model, answers in its one round trip.

    Attributes
    ----------
    loss : Tensor, optional
        Scalar; ``None`` where no labels were sent.
    logits : Tensor, optional
        Shape (B, T', V) for causal language models, (B, C) for classifiers; ``None``
        where the call wants the loss alone.
    grad : Tensor, optional
        d loss / d hidden, shape (B, T, D); ``None`` where ``call.step`` was.
    """

    loss: Tensor | None
    logits: Tensor | None
    grad: Tensor | None


class TrunkClient(ABC):
    """A client's connection to its session on the trunk.

    Its methods are all that a split model calls; those of a trunk that keeps no caches
    may be without :meth:`extend` and :meth:`forget`. An implementation sends the
    tensors somewhere and brings the answer back; it raises a
    :class:`~atlas_flwr.errors.TrunkError` when it cannot.
    """

    @property
    def keeps_caches(self) -> bool:
        """Whether texts can be gone on with, by :meth:`extend`."""
        return False

    @abstractmethod
    def forward(self, call: TrunkCall) -> Tensor:
        """Run the trunk's blocks; return hidden states of shape (B, T, D).

        With ``call.step`` set, the trunk remembers the pass until ``backward(step)``.
        """

    @abstractmethod
    def backward(self, step: int, grad: Tensor) -> Tensor | None:
        """Back-propagate d loss / d output, shape (B, T, D), of an earlier forward.

        The trunk's adapters take their optimiser step. Returns d loss / d hidden, shape
        (B, T, D), or ``None`` where the step is to leave the trunk and the head as they
        are, or the head has nothing to learn. Where an answer can be lost on the way, a
        trunk that is asked again answers the same again, without a second optimiser
        step.
        """

    @abstractmethod
    def loss(
        self, call: TrunkCall, labels: Tensor | None, logits_to_keep: int = 0
    ) -> LossReply:
        """End the model in the trunk (vanilla split): one round trip a step.

        With ``call.step`` set, the trunk also back-propagates and steps its adapters.
        ``logits_to_keep`` > 0 restricts a causal model to its last positions.
        """

    def leaving(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Return what is sent of positions that are new to texts.

        It is asked once for each position, and what it returned is what :meth:`extend`
        is given, again where a trunk has forgotten the texts: one that says so again
        and again learns nothing by it.

        Parameters
        ----------
        hidden : Tensor
            Shape (B, n, D).
        mask : Tensor, optional
            Shape (B, T + n).
        """
        return hidden

    def extend(self, call: TrunkCall, place: Continuation, keep: int = 0) -> Tensor:
        """Go on with texts of which the trunk keeps keys and values.

        Parameters
        ----------
        call : TrunkCall
            ``hidden`` of the n new positions, shape (B, n, D). In call 0 with mask and
            positions as ever. Later ``attention_mask`` is of all T + n positions, or
            ``None`` where the new ones are real; ``position_ids`` are of the new ones,
            or ``None`` where they count on.
        place : Continuation
            Which texts.
        keep : int
            Above 0, only so many of the last positions are answered.

        Returns
        -------
        Tensor
            Hidden states, shape (B, n, D); of a trunk that ends the model, logits
            (B, n, V).

        Raises
        ------
        CacheLost
            If the trunk has forgotten the texts, or another call of theirs is due; they
            have to be sent whole, as call 0.
        TypeError
            If it keeps no caches at all.
        """
        raise self._no_caches()

    def forget(self, texts: int) -> None:
        """Free what the trunk keeps of texts; unknown ones are forgotten already.

        Raises
        ------
        TypeError
            If it keeps no caches at all.
        """
        raise self._no_caches()

    def _no_caches(self) -> TypeError:
        name = type(self).__name__
        return TypeError(f"{name} keeps no caches; generate with use_cache=False")
