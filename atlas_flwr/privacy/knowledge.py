# SPDX-License-Identifier: Apache-2.0
"""What an attacker holds: the public model, a client's adapters, other texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from atlas_flwr.lora import (
    AdapterState,
    Scaling,
    attach,
    attach_ia3,
    detach,
    fold,
    ia3_vectors,
    load,
)
from atlas_flwr.privacy.defences.base import Defence
from atlas_flwr.privacy.defences.vocabulary import Vocabulary
from atlas_flwr.privacy.observation import Observation, Recording, as_received
from atlas_flwr.split import SUMMARY_KEY, Parts, SplitPlan, part_info
from atlas_flwr.split.passes import run_blocks
from atlas_flwr.split.summary import Summary, reads_forward_only
from atlas_flwr.types import Role
from atlas_flwr.wire import Codec

__all__ = ["Knowledge", "KnownText", "LabelledText", "PublicModel", "on_side"]

_V = TypeVar("_V")


@dataclass(frozen=True)
class KnownText:
    """A text that the attacker has, and what would cross for it.

    Attributes
    ----------
    ids : Tensor
        Shape (T,).
    hidden : Tensor
        Shape (T, D), with the defence and the codec that clients have; (1 + S, D) where
        S summary positions cross.
    private : slice
        Of ``ids`` those that no template says.
    sent : Tensor, optional
        Shape (T,): what the head read in their place, where a defence replaces tokens.
    through : tuple[str, int]
        Client and round whose head it is.
    """

    ids: Tensor
    hidden: Tensor
    private: slice = field(default_factory=lambda: slice(None))
    sent: Tensor | None = None
    through: tuple[str, int] = ("", 0)


@dataclass(frozen=True)
class LabelledText:
    """A text of a client's task whose class the attacker knows.

    Attributes
    ----------
    hidden : Tensor
        Shape (T, D): what would cross for it, its label's word left out.
    label : int
        Its class.
    word : int
        Tokens of the longest label's word, which cross behind a client's texts.
    """

    hidden: Tensor
    label: int
    word: int


@dataclass
class PublicModel:
    """The client's side as the server knows it: base weights, adapters as it sent them.

    Parameters
    ----------
    parts : Callable[[SplitPlan], Parts]
        Loads head and tail.
    recordings : Sequence[Recording]
        For whose adapters there were.
    trunk : Callable[[SplitPlan], Any], optional
        Loads the trunk.
    """

    parts: Callable[[SplitPlan], Parts]
    recordings: Sequence[Recording]
    trunk: Callable[[SplitPlan], Any] | None = None
    _who: tuple[str, int] | None = None
    _now: Parts | None = None
    _plan: SplitPlan | None = None
    _folded: bool = False
    _summary: Summary | None = None
    _deep: tuple[SplitPlan, Any] | None = None

    def head(self, seen: Observation) -> Any:
        """Return the head of an observation; valid until the next is asked for."""
        return self._of(seen).head

    def tail(self, seen: Observation) -> Any:
        """Return the tail of an observation; valid until the next is asked for."""
        return self._of(seen).tail

    def crossing(self, seen: Observation, ids: Tensor) -> Tensor:
        """Return what the client of an observation would send, with no defence.

        Parameters
        ----------
        seen : Observation
            For its head.
        ids : Tensor
            Shape (B, T): texts without padding.

        Returns
        -------
        Tensor
            Shape (B, T, D); (B, 1 + S, D) where S summary positions cross.
        """
        head = self.head(seen)
        if self._summary is None:
            hidden: Tensor = head(input_ids=ids, use_cache=False).last_hidden_state
            return hidden
        embeds = head.get_input_embeddings()(ids)
        inputs = self._summary.around({"inputs_embeds": embeds})
        return self._summary.leaving(run_blocks(head, **inputs), None).hidden

    @torch.no_grad()
    def deep(self, seen: Observation, hidden: Tensor) -> Tensor:
        """Return what the public trunk makes of what an observation's client sends.

        Parameters
        ----------
        seen : Observation
            For its cut.
        hidden : Tensor
            Shape (T, D).

        Returns
        -------
        Tensor
            Shape (T, D).

        Raises
        ------
        ValueError
            If the model was made without a trunk.
        """
        if self.trunk is None:
            raise ValueError("this PublicModel has no trunk: give it one that loads it")
        plan = self._found(seen.client, seen.round).plan
        if self._deep is None or self._deep[0] != plan:
            self._deep = plan, self.trunk(plan).requires_grad_(False).eval()
        return run_blocks(self._deep[1], inputs_embeds=hidden[None])[0]

    def together(self, seen: Observation) -> Sequence[Observation]:
        """Return all that crossed in an observation's step, itself among them."""
        found = self._found(seen.client, seen.round)
        return [o for o in found.observations if o.step == seen.step]

    def around(self, seen: Observation, least: int) -> Sequence[Observation]:
        """Return what crossed in an observation's step, and if need be in those next.

        Parameters
        ----------
        seen : Observation
            One of them.
        least : int
            So many at least, if the client sent so many in the round.
        """
        all_sent = self._found(seen.client, seen.round).observations
        away = sorted(abs(o.step - seen.step) for o in all_sent)
        reach = away[min(least, len(away)) - 1]
        return [o for o in all_sent if abs(o.step - seen.step) <= reach]

    def _found(self, client: str, number: int) -> Recording:
        who = client, number
        (found,) = [r for r in self.recordings if (r.client, r.round) == who]
        return found

    def _of(self, seen: Observation) -> Parts:
        who = seen.client, seen.round
        if self._now is None or who != self._who:
            self._now = self._switched(who)
            self._who = who
        return self._now

    def _switched(self, who: tuple[str, int]) -> Parts:
        found = self._found(*who)
        parts = self._now
        if parts is None or self._folded or found.plan != self._plan:
            parts = self.parts(found.plan)
            self._plan = found.plan
        self._folded = bool(found.adapters.folded)
        for side in (parts.head, parts.tail):
            if side is not None:
                _adapt(side, found.adapters)
        learned = found.adapters.dense.get(SUMMARY_KEY)
        self._summary = None
        if learned is not None:
            causal = reads_forward_only(parts.head)
            self._summary = Summary(torch.tensor(learned), causal=causal)
            self._summary.requires_grad_(False)
        return parts


def _adapt(side: Any, state: AdapterState) -> None:
    detach(side)
    fold(side, on_side(side, state.folded))
    mine = on_side(side, state.factors)
    attach(side, {name: f.rank for name, f in mine.items()}, Scaling())
    load(side, mine)
    attach_ia3(side, on_side(side, ia3_vectors(state.dense)))
    named = dict(side.named_parameters())
    local = part_info(side).local_name
    with torch.no_grad():
        for key, value in state.dense.items():
            parameter = named.get(local(key) or "")
            if parameter is not None:
                parameter.copy_(torch.from_numpy(value))
    side.requires_grad_(False).eval()


def on_side(side: Any, layers: Mapping[str, _V]) -> dict[str, _V]:
    """Return those of the whole model's layers that a part has, by its names."""
    local = part_info(side).local_name
    named = {local(name): found for name, found in layers.items()}
    return {name: found for name, found in named.items() if name is not None}


@dataclass(frozen=True)
class Knowledge:
    """What an attacker knows besides what crossed.

    Attributes
    ----------
    model : PublicModel
        Base weights and adapters.
    known : Sequence[KnownText]
        Other texts.
    defence : Defence
        The clients'.
    codec : Codec
        The connection's.
    causal : bool
        Whether a token's hidden state depends on no later one.
    answers : Mapping[str, Sequence[int]]
        By client: for each class of its task the token that a causal model answers, or
        the class itself.
    seed : int
        Of what the attacker draws.
    scale : float
        Size of a usual position, by the known texts; 0 where each text's own will do.
    frames : Mapping[str, tuple[Sequence[int], Sequence[int]]]
        By client: the tokens that its task's template puts before a text and after it.
    whole : Callable[[], Any], optional
        Loads the public model, where it writes text.
    longest : int
        Tokens of a prompt at most.
    summarised : bool
        Whether what crosses are summary positions, not one for each token.
    vocabulary : Vocabulary, optional
        The model's, where the defence replaces tokens.
    labelled : Callable[[str], Sequence[LabelledText]], optional
        By client: a few texts of its task, not its own, and their classes.
    fitted : dict[str, Any]
        What an attack has fitted on the known texts, by name, for the next that needs
        the same.
    """

    model: PublicModel
    known: Sequence[KnownText]
    defence: Defence
    codec: Codec
    causal: bool
    answers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    seed: int = 0
    scale: float = 0.0
    frames: Mapping[str, tuple[Sequence[int], Sequence[int]]] = field(
        default_factory=dict
    )
    whole: Callable[[], Any] | None = None
    longest: int = 64
    summarised: bool = False
    vocabulary: Vocabulary | None = None
    labelled: Callable[[str], Sequence[LabelledText]] | None = None
    fitted: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def of_sent(self) -> Knowledge:
        """The same, of known texts as the head reads them, with the defence on."""
        if not self.defence.replaces_tokens:
            return self
        known = [
            text if text.sent is None else replace(text, ids=text.sent)
            for text in self.known
        ]
        fitted = self.fitted.setdefault("of_sent", {})
        return replace(self, known=known, fitted=fitted)

    def table(self, seen: Observation) -> Tensor:
        """Return the public table of token embeddings, shape (V, E)."""
        table: Tensor = self.model.head(seen).get_input_embeddings().weight
        return table.detach().float()

    def crossed(self, hidden: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return hidden states (T, D) as the trunk would see them.

        Without a generator, without what is drawn: what they are on average.
        """
        sent = self.defence.activations(hidden, generator, self.scale)
        return as_received(self.codec, sent, Role.ACTIVATION)
