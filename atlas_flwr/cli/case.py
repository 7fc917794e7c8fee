# SPDX-License-Identifier: Apache-2.0
"""Texts to attack, and how what was read of them is held against the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.privacy import Attack, Observation, Score, Truth
    from atlas_flwr.privacy.knowledge import Knowledge

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """Texts of one depth of head, and what their attacker knows.

    Attributes
    ----------
    cut : str
        The clients' cuts.
    knowledge : Knowledge
        The attacker's.
    seen, truths : Sequence
        What crossed, and what it was.
    private : Sequence[slice]
        Of each prompt the tokens that its task's template does not say.
    spelled : Callable[[Sequence[int]], list[str]]
        Returns what each token of a text adds to it.
    undefended : Callable[[], Case], optional
        Returns the same without its defence; ``None`` where there is none.
    """

    cut: str
    knowledge: Knowledge
    seen: Sequence[Observation]
    truths: Sequence[Truth]
    private: Sequence[slice]
    spelled: Callable[[Sequence[int]], list[str]]
    undefended: Callable[[], Case] | None = None

    def attacked(self, attack: Attack, seed: int) -> Score | str:
        """Attack those of the texts that have what it reads.

        Returns
        -------
        Score or str
            Why it cannot be tried, where it cannot.
        """
        from atlas_flwr.privacy.attacks.base import LABEL, RESPONSE

        case, answers = self, self.knowledge.answers
        if attack.target in (LABEL, RESPONSE):
            classes = attack.target == LABEL
            kept = [
                i for i in self._places if (self.seen[i].client in answers) == classes
            ]
            if not kept:
                what = "classes" if classes else "responses"
                return f"it is for tasks with {what}"
            case = self._of(kept)
        why = attack.unfit(case.knowledge, case.seen)
        return why or case._judged(attack, seed)

    @property
    def _places(self) -> range:
        return range(len(self.seen))

    def _of(self, places: Sequence[int]) -> Case:
        """Return the same with some of the texts."""
        return replace(
            self,
            seen=[self.seen[i] for i in places],
            truths=[self.truths[i] for i in places],
            private=[self.private[i] for i in places],
        )

    def bounded(self, attack: Attack, seed: int) -> Score | str:
        """Attack as :meth:`attacked` does, and say what there was to read.

        Under a defence that is a second attack; see
        :attr:`~atlas_flwr.privacy.Score.upper_bound`.
        """
        from atlas_flwr.privacy.attacks.base import TEXT

        found = self.attacked(attack, seed)
        if isinstance(found, str) or attack.target != TEXT or self.undefended is None:
            return found
        most = self.undefended().attacked(attack.undefended, seed)
        if isinstance(most, str):  # what is fit for less is fit for more
            raise RuntimeError(f"{attack.name} without its defence: {most}")
        return replace(found, upper_bound=most.token_accuracy)

    def _judged(self, attack: Attack, seed: int) -> Score | str:
        from atlas_flwr.privacy.attacks.base import LABEL

        if attack.target != LABEL:
            counts = [bool(self._counted(attack, i).any()) for i in self._places]
            if not any(counts):
                return "of none of these texts a token counts"
            if not all(counts):
                kept = [i for i in self._places if counts[i]]
                return self._of(kept)._judged(attack, seed)
        guesses = attack.read(self.knowledge, self.seen)
        about = {
            "attack": attack.name,
            "adversary": str(attack.adversary),
            "defence": str(self.knowledge.defence),
            "cut": self.cut,
            "target": attack.target,
            "seed": seed,
        }
        if attack.target == LABEL:
            return self._labels(attack, guesses, about)
        return self._texts(attack, guesses, about)

    def _labels(
        self, attack: Attack, guesses: Sequence[Tensor], about: dict[str, Any]
    ) -> Score:
        from atlas_flwr.privacy.attacks.naming import best_names, right_by_chance
        from atlas_flwr.privacy.scores import score

        labels = [[t.label] for t in self.truths]
        read = [[int(g)] for g in guesses]
        owners = [o.client for o in self.seen]
        # Tasks number their classes each by itself: a class of all clients is none.
        common = best_names(owners, [[0] for _ in labels], labels)
        guessed = score(common, labels, baseline=0, **about).token_accuracy
        if not attack.names_labels:
            chance = right_by_chance(owners, read, labels, about["seed"])
            guessed = max(guessed, chance)
            read = best_names(owners, read, labels)
        return score(read, labels, baseline=guessed, **about)

    def _texts(
        self, attack: Attack, guesses: Sequence[Tensor], about: dict[str, Any]
    ) -> Score:
        from atlas_flwr.privacy.names import names_read, places_of_names
        from atlas_flwr.privacy.scores import commonest_share, fitted, of_another, score

        kept = [self._counted(attack, i) for i in range(len(self.truths))]
        truths = [t.ids[k].tolist() for t, k in zip(self.truths, kept, strict=True)]
        owners = [o.client for o in self.seen]
        own = [g.tolist() for g in guesses]
        if not attack.writes:
            own = [g[k].tolist() for g, k in zip(guesses, kept, strict=True)]
        read, others = fitted(own, truths), fitted(of_another(owners, own), truths)
        # A template's words are in every text, and not counted in any.
        known = [int(n) for t in self.knowledge.known for n in t.ids[t.private]]
        common = commonest_share(known, truths)
        unread = score(others, truths, baseline=0, **about)
        if attack.writes:
            common = max(common, unread.token_accuracy)
        names = [places_of_names(self.spelled(text)) for text in truths]
        return replace(
            score(read, truths, baseline=common, **about),
            rouge_l_of_another=unread.rouge_l,
            names=sum(map(len, names)),
            names_read=names_read(read, truths, names),
            names_of_another=names_read(others, truths, names),
        )

    def _counted(self, attack: Attack, i: int) -> Tensor:
        """Return which of a text's tokens count, shape (T,), bool."""
        import torch

        from atlas_flwr.privacy.attacks.base import RESPONSE

        truth = self.truths[i]
        prompt = torch.zeros_like(truth.answer)
        # Of a conversation answers stand between the prompt's tokens.
        prompt[(~truth.answer).nonzero()[self.private[i]]] = True
        if attack.writes or self.seen[i].client in self.knowledge.answers:
            return prompt & ~truth.answer
        if attack.target == RESPONSE:
            return truth.answer
        return prompt | truth.answer
