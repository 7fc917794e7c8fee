# SPDX-License-Identifier: Apache-2.0
"""What one client did in a round, or did not do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["ClientEvaluated", "ClientFailed", "ClientTrained", "Sampled"]


@dataclass(frozen=True)
class ClientTrained:
    """A client finished its local steps.

    Attributes
    ----------
    round : int
        Server round, from 1.
    client, task : str
        Who, and the name of its task.
    cluster : int, optional
        Its cluster; ``None`` where the strategy has none.
    loss : float
        Mean training loss over the steps: the task's, without what remedies add.
    num_examples, steps : int
        Training examples of the client, and batches that it trained on; ``accumulate``
        of them make an optimiser step.
    seconds : float
        Wall time in the client.
    bytes_up, bytes_down : int
        Sent and received by the client: its Flower messages and, where the model is
        split, all that crossed the cut.
    peak_bytes : int
        Peak memory of the client, measured; 0 where it was not.
    rank : int
        Largest LoRA rank that the client trains.
    plan : str
        Its cut, e.g. ``"2/1"``; empty for the whole model.
    skipped : int
        Backward passes that it did not send to the trunk.
    penalty : float, optional
        Mean of what remedies added to the loss.
    codec : str
        By which it called its trunk; those of all places where that was in several,
        with ``+`` between. Empty for the whole model, and where it is not told.
    """

    round: int
    client: str
    task: str
    cluster: int | None
    loss: float
    num_examples: int
    steps: int
    seconds: float
    bytes_up: int
    bytes_down: int
    peak_bytes: int = 0
    rank: int = 0
    plan: str = ""
    skipped: int = 0
    penalty: float | None = None
    codec: str = ""


@dataclass(frozen=True)
class ClientEvaluated:
    """A client evaluated on its held-out examples.

    Attributes
    ----------
    round : int
        Server round; 0 is the untrained model.
    client, task : str
        Who, and the name of its task.
    cluster : int, optional
        Its cluster; ``None`` where the strategy has none.
    accuracy, loss : float
        Means over the examples; over ``tokens`` where the task is answered by text.
    num_examples : int
        Test examples of the client.
    confusion : tuple[int, ...]
        Examples by their class and the one predicted, row after row.
    writes : bool
        Whether its task is answered by text.
    tokens : int
        Tokens of the right answers; 0 where a class is the answer.
    scores : Mapping[str, float]
        Means of each score over the answers that it wrote.
    scored : int
        How many answers these are.
    """

    round: int
    client: str
    task: str
    cluster: int | None
    accuracy: float
    loss: float
    num_examples: int
    confusion: tuple[int, ...] = ()
    writes: bool = False
    tokens: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    scored: int = 0

    @property
    def weight(self) -> int:
        """What its accuracy and loss are means over."""
        return self.tokens or self.num_examples


@dataclass(frozen=True)
class Sampled:
    """A client has sent an answer that it wrote, to be shown.

    Attributes
    ----------
    round : int
        Server round; 0 is the untrained model.
    client, task : str
        Whose, and of what.
    number : int
        Which of the client's test prompts, from 0.
    prompt, reference, answer : str
        What was asked, what should have been answered, and what was.
    """

    round: int
    client: str
    task: str
    number: int
    prompt: str
    reference: str
    answer: str


@dataclass(frozen=True)
class ClientFailed:
    """A client answered a message by an error, or not in time; the round went on.

    Attributes
    ----------
    round : int
        Server round.
    kind : str
        Of the message: ``train``, ``evaluate``, ``query.fingerprint``...
    client : str
        Who.
    reason : str
        The first sentence of what it said.
    """

    round: int
    kind: str
    client: str
    reason: str
