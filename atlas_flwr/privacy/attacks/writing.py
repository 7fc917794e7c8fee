# SPDX-License-Identifier: Apache-2.0
"""The whole public model, tuned to write a text from what crossed of it.

Reading text from a few vectors by a decoder that is trained on other texts is that of
Vec2Text's first step (arXiv 2310.06816), and keeping the try whose own vectors are
nearest its second, in one round. Here the decoder is the public causal model with LoRA
on every linear layer. What crossed stands before the text as a soft prompt, one
position a row, which a small network makes of the row.

A client's head moves while it trains, by more than its texts differ; but it moves what
crosses of all texts alike. So rows are read by how they differ from the usual ones of
texts that crossed at the same time.

Shapes: R rows of a crossing, D wide; T tokens of a text; E width of embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from atlas_flwr.data.tokens import end_id
from atlas_flwr.lora import Scaling, attach, linear_names
from atlas_flwr.privacy.knowledge import Knowledge, KnownText
from atlas_flwr.privacy.observation import Observation
from atlas_flwr.split.unbiased import UNBIASED

__all__ = ["CrossingWriter"]

RANK, WIDTH = 16, 1024
STEPS, RATE = 300, 1e-3
TOGETHER = 8  # texts that crossed at the same time, more or less
GROUPS = 2  # of these in a step of training
LEAST = 1e-3  # of a usual number's size: what varies by less tells nothing
TRIES, WARMTH = 24, 0.7


class CrossingWriter(nn.Module):
    """Writes texts from crossings.

    Parameters
    ----------
    knowledge : Knowledge
        Its known texts are learned from, as they came through defence and codec.
    steps : int
        Of training, 16 texts each; 0 for 300.
    """

    def __init__(self, knowledge: Knowledge, steps: int = 0) -> None:
        super().__init__()
        assert knowledge.whole is not None
        self._knows = knowledge
        self.model = knowledge.whole()
        self._end = end_id(self.model)
        self._groups: dict[tuple[str, int], list[KnownText]] = {}
        for text in knowledge.known:
            self._groups.setdefault(text.through, []).append(text)
        moved = [
            text.hidden - self._usual([text.hidden for text in group])
            for group in self._groups.values()
            for text in group
        ]
        rows = self._joined(moved)
        size = self._joined([text.hidden for text in knowledge.known]).square().mean()
        self._spread = (
            rows.square().mean(0).sqrt().clamp(min=LEAST * float(size.sqrt()))
        )
        embeddings = self.model.get_input_embeddings().weight.detach()
        self._size = float(embeddings.float().square().mean().sqrt())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(knowledge.seed)
            ranks = dict.fromkeys(linear_names(self.model), RANK)
            attach(self.model, ranks, Scaling())
            self.inward = nn.Sequential(
                nn.Linear(rows.shape[-1], WIDTH),
                nn.GELU(),
                nn.Linear(WIDTH, embeddings.shape[1]),
                nn.LayerNorm(embeddings.shape[1]),
            )
            self._fit(knowledge.seed, steps or STEPS)

    def shown(self, seen: Observation) -> Tensor:
        """Return what crossed as it is read, (R, D): less what was usual then."""
        among = [o.hidden for o in self._knows.model.around(seen, TOGETHER)]
        return self._differing(seen.hidden, among)

    def forward(self, texts: Sequence[KnownText]) -> Tensor:
        """Return the loss of texts' own parts, nats a token, a scalar.

        Parameters
        ----------
        texts : Sequence[KnownText]
            ``hidden`` is what each is :meth:`shown`.
        """
        end = torch.tensor([self._end])
        embeds, labels = [], []
        for text in texts:
            own = torch.cat([text.ids[text.private], end])
            began = self._began(text.hidden, text.ids[: text.private.start or 0])
            embeds.append(torch.cat([began, self._embedded(own)]))
            labels.append(torch.cat([torch.full((len(began),), -100), own]))
        padded = nn.utils.rnn.pad_sequence(labels, True, -100)
        lengths = torch.tensor([len(row) for row in labels])
        loss: Tensor = self.model(
            inputs_embeds=nn.utils.rnn.pad_sequence(embeds, True),
            attention_mask=(torch.arange(padded.shape[1]) < lengths[:, None]).long(),
            labels=padded,
            use_cache=False,
        ).loss
        return loss

    @torch.no_grad()
    def tries(self, seen: Observation) -> list[list[int]]:
        """Write a text some times: once what is likeliest, then drawn."""
        before, _ = self._knows.frames[seen.client]
        began = self._began(self.shown(seen), torch.tensor([*before]).long())
        common = {
            "inputs_embeds": began[None],
            "attention_mask": torch.ones(1, len(began), dtype=torch.long),
            "max_new_tokens": max(1, self._knows.longest - len(before)),
            "eos_token_id": self._end,
            "pad_token_id": self._end,
            **UNBIASED,
        }
        drawing = {"do_sample": True, "temperature": WARMTH, "top_k": 0}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._knows.seed)
            made = self.model.generate(**common, do_sample=False).tolist()
            made += self.model.generate(
                **common, **drawing, num_return_sequences=TRIES - 1
            ).tolist()
        return [self._until_end(row) for row in made]

    @torch.no_grad()
    def nearest(self, seen: Observation, tries: Sequence[Sequence[int]]) -> Tensor:
        """Return the try whose own crossing is nearest to what was received.

        Parameters
        ----------
        seen : Observation
            What was received.
        tries : Sequence[Sequence[int]]
            Tokens that no template says; those that are none at all are passed over.
        """
        knows = self._knows
        before, after = knows.frames[seen.client]
        wanted = self.shown(seen)
        usual = [text.hidden for text in self._groups[seen.client, seen.round]]

        def distance(own: Sequence[int]) -> float:
            ids = torch.tensor([[*before, *own, *after]])
            sent = knows.crossed(knows.model.crossing(seen, ids)[0].float(), None)
            if len(sent) != len(wanted):
                return float("inf")
            return float((self._differing(sent, usual) - wanted).norm())

        fit = [list(own) for own in {tuple(own): None for own in tries} if own]
        return torch.tensor(min(fit, key=distance) if fit else [0])

    def _until_end(self, row: list[int]) -> list[int]:
        return row[: row.index(self._end)] if self._end in row else row

    def _joined(self, crossings: Sequence[Tensor]) -> Tensor:
        """Join crossings so that rows of one kind stand along the first axis.

        Each summary position is a kind of its own; all places of a text are one.
        """
        if self._knows.summarised:
            return torch.stack([*crossings])
        return torch.cat([*crossings])

    def _usual(self, crossings: Sequence[Tensor]) -> Tensor:
        return self._joined(crossings).mean(0)

    def _differing(self, hidden: Tensor, among: Sequence[Tensor]) -> Tensor:
        return (hidden - self._usual(among)) / self._spread

    def _began(self, shown: Tensor, before: Tensor) -> Tensor:
        """Return what stands before a text: its crossing, and its template's words."""
        words = self._embedded(before)
        return torch.cat([(self._size * self.inward(shown)).to(words.dtype), words])

    def _embedded(self, ids: Tensor) -> Tensor:
        found: Tensor = self.model.get_input_embeddings()(ids)
        return found

    @torch.enable_grad()  # those who fit it may be reading already
    def _fit(self, seed: int, steps: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        learned = [p for p in self.parameters() if p.requires_grad]
        stepper = torch.optim.AdamW(learned, RATE)
        plan = torch.optim.lr_scheduler.OneCycleLR(stepper, RATE, total_steps=steps)
        groups = [*self._groups.values()]
        sizes = torch.tensor([float(len(group)) for group in groups])
        for _ in range(steps):
            lesson: list[KnownText] = []
            for which in torch.multinomial(sizes, GROUPS, True, generator=generator):
                group = groups[int(which)]
                picked = torch.randperm(len(group), generator=generator)[:TOGETHER]
                texts = [group[int(row)] for row in picked]
                among = [text.hidden for text in texts]
                lesson += [
                    replace(text, hidden=self._differing(text.hidden, among))
                    for text in texts
                ]
            loss = self(lesson)
            stepper.zero_grad()
            loss.backward()
            stepper.step()
            plan.step()
        self.requires_grad_(False).eval()
