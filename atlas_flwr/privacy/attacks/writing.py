# SPDX-License-Identifier: Apache-2.0
"""A small decoder that writes a text from what crossed of it.

Reading text from a few vectors by a decoder that is trained on other texts is that of
Vec2Text's first step (arXiv 2310.06816), and keeping the try whose own vectors are
nearest its second, in one round. Here the public model's last hidden states, which know
what was written so far, are corrected by a transformer that sees the crossing, so that
it has no language to learn. Its loss is over the batch's tokens and some drawn ones.

Shapes: R rows of a crossing, D wide; T tokens of a text; E width of the LM head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlas_flwr.privacy.knowledge import Knowledge, KnownText
from atlas_flwr.privacy.observation import Observation

__all__ = ["CrossingWriter", "nearest"]

WIDTH, BLOCKS, HEADS = 256, 2, 4
STEPS, ROWS, RATE = 600, 16, 1e-3
REACH = 4.0
OTHERS = 2048
PLACES = 512
TRIES, WARMTH = 24, 0.7


class CrossingWriter(nn.Module):
    """Writes texts from crossings.

    Parameters
    ----------
    knowledge : Knowledge
        Its known texts are learned from, as they came through defence and codec.
    steps : int
        Of training; 0 for 600.
    """

    def __init__(self, knowledge: Knowledge, steps: int = 0) -> None:
        super().__init__()
        assert knowledge.whole is not None
        known = knowledge.known
        whole = knowledge.whole().requires_grad_(False).eval()
        self._public, self._knows = whole, knowledge
        lm_head = whole.get_output_embeddings()
        self.rows: Tensor = lm_head.weight.detach().float()
        bias = getattr(lm_head, "bias", None)
        # So that corrections move scores alike, however long the vocabulary's rows are.
        self._reach = REACH / float(self.rows.norm(dim=1).mean())
        self._bias = torch.zeros(len(self.rows)) if bias is None else bias.detach()
        ends = whole.generation_config.eos_token_id
        self._end = int(ends[0] if isinstance(ends, list) else ends or 0)
        received = torch.cat([text.hidden for text in known])
        self.mean, self.spread = received.mean(0), received.std(0).clamp(min=1e-6)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(knowledge.seed)
            self.inward = nn.Linear(self.rows.shape[1], WIDTH)
            self.crossing = nn.Linear(known[0].hidden.shape[1], WIDTH)
            self.places = nn.Embedding(PLACES, WIDTH)
            self.crossed_places = nn.Embedding(PLACES, WIDTH)
            layer = nn.TransformerDecoderLayer(
                WIDTH, HEADS, 4 * WIDTH, 0.1, "gelu", batch_first=True, norm_first=True
            )
            self.blocks = nn.TransformerDecoder(layer, BLOCKS, nn.LayerNorm(WIDTH))
            self.outward = nn.Linear(WIDTH, self.rows.shape[1])
            nn.init.zeros_(self.outward.weight)
            nn.init.zeros_(self.outward.bias)
            self._fit(knowledge, steps or STEPS)

    def forward(self, states: Tensor, crossings: Sequence[Tensor]) -> Tensor:
        """Return corrected last hidden states (B, T, E).

        Parameters
        ----------
        states : Tensor
            Shape (B, T, E): the public model's, of what was written before each place.
        crossings : Sequence[Tensor]
            B of shape (R, D).
        """
        memory = nn.utils.rnn.pad_sequence(
            [(c - self.mean) / self.spread for c in crossings], True
        )
        lengths = torch.tensor([len(c) for c in crossings])
        absent = torch.arange(memory.shape[1]) >= lengths[:, None]
        read = self.crossing(memory) + self._placed(self.crossed_places, memory)
        inside = self.inward(states) + self._placed(self.places, states)
        later = torch.ones(2 * (states.shape[1],), dtype=torch.bool).triu(1)
        made = self.blocks(inside, read, tgt_mask=later, memory_key_padding_mask=absent)
        corrected: Tensor = states + self._reach * self.outward(made)
        return corrected

    @torch.no_grad()
    def tries(self, seen: Observation) -> list[list[int]]:
        """Write a text some times: once what is likeliest, then drawn."""
        before, _ = self._knows.frames[seen.client]
        generator = torch.Generator().manual_seed(self._knows.seed)
        start = list(before) or [self._end]
        room = max(1, self._knows.longest - len(before))
        ids = torch.tensor([start]).expand(TRIES, -1)
        states, cache = self._states(ids)
        states = states[:, -1:]
        written = ids[:, :0]
        ended = torch.zeros(TRIES, dtype=torch.bool)
        for _ in range(room):
            made = self(states, [seen.hidden] * TRIES)[:, -1]
            logits = made @ self.rows.T + self._bias
            drawn = torch.multinomial(
                (logits / WARMTH).softmax(1), 1, generator=generator
            )[:, 0]
            drawn[0] = logits[0].argmax()
            written = torch.cat([written, drawn[:, None]], dim=1)
            ended |= drawn == self._end
            if ended.all():
                break
            new, cache = self._states(drawn[:, None], cache)
            states = torch.cat([states, new], dim=1)
        return [self._until_end(row) for row in written.tolist()]

    def _until_end(self, row: list[int]) -> list[int]:
        return row[: row.index(self._end)] if self._end in row else row

    def _placed(self, table: nn.Embedding, rows: Tensor) -> Tensor:
        found: Tensor = table(torch.arange(rows.shape[1]).clamp(max=PLACES - 1))
        return found

    def _states(self, ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """Return the public model's last hidden states of tokens, and its cache."""
        inner = self._public.base_model
        out = inner(input_ids=ids, past_key_values=cache, use_cache=True)
        return out.last_hidden_state.float(), out.past_key_values

    @torch.no_grad()
    def _lesson(self, text: KnownText) -> tuple[Tensor, Tensor, Tensor]:
        """Return states before each token of a text's own part, these, the crossing."""
        own = text.ids[text.private]
        before = text.ids[: text.private.start or 0]
        start = before if len(before) else torch.tensor([self._end])
        states, _ = self._states(torch.cat([start, own])[None])
        wanted = torch.cat([own, torch.tensor([self._end])])
        return states[0, len(start) - 1 :], wanted, text.hidden

    @torch.enable_grad()  # those who fit it may be reading already
    def _fit(self, knowledge: Knowledge, steps: int) -> None:
        lessons = [self._lesson(text) for text in knowledge.known]
        generator = torch.Generator().manual_seed(knowledge.seed)
        learned = [p for n, p in self.named_parameters() if not n.startswith("_public")]
        stepper = torch.optim.AdamW(learned, RATE)
        plan = torch.optim.lr_scheduler.OneCycleLR(stepper, RATE, total_steps=steps)
        vocabulary = len(self.rows)
        for _ in range(steps):
            picked = torch.randint(len(lessons), (ROWS,), generator=generator)
            chosen = [lessons[int(row)] for row in picked]
            states = nn.utils.rnn.pad_sequence([s for s, _, _ in chosen], True)
            ids = nn.utils.rnn.pad_sequence([w for _, w, _ in chosen], True, -1)
            made = self(states, [c for _, _, c in chosen])[ids >= 0]
            drawn = torch.randint(vocabulary, (OTHERS,), generator=generator)
            every = torch.cat([ids[ids >= 0], drawn])
            among, places = every.unique(return_inverse=True)
            scores = made @ self.rows[among].T + self._bias[among]
            loss = F.cross_entropy(scores, places[: len(scores)])
            stepper.zero_grad()
            loss.backward()
            stepper.step()
            plan.step()
        self.requires_grad_(False).eval()


@torch.no_grad()
def nearest(
    knowledge: Knowledge, seen: Observation, tries: Sequence[Sequence[int]]
) -> Tensor:
    """Return the try whose own crossing is nearest to what was received."""
    before, after = knowledge.frames[seen.client]

    def distance(own: Sequence[int]) -> float:
        ids = torch.tensor([[*before, *own, *after]])
        sent = knowledge.model.crossing(seen, ids)[0].float()
        if len(sent) != len(seen.hidden):
            return float("inf")
        sent = knowledge.crossed(sent, None)
        off = knowledge.defence.unlikeliness(
            seen.hidden.flatten(), sent.flatten()[None], knowledge.scale
        )
        return float(off)

    fit = [list(own) for own in {tuple(own): None for own in tries} if own]
    return torch.tensor(min(fit, key=distance) if fit else [0])
