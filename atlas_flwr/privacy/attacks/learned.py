# SPDX-License-Identifier: Apache-2.0
"""A small transformer that reads tokens from hidden states, after SIP.

Smashed-data inversion by a learned model is SIP's part of BiSR (arXiv 2409.00960),
which takes a GRU. Here a transformer that sees all positions corrects a linear reader,
with which it begins. Its loss is over the batch's tokens and some drawn ones: all of
the vocabulary would take most of a CPU's time.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlas_flwr.privacy.attacks.reader import LinearReader
from atlas_flwr.privacy.knowledge import Knowledge
from atlas_flwr.privacy.observation import Observation

__all__ = ["LearnedReader"]

WIDTH, BLOCKS, HEADS = 256, 2, 4
STEPS, ROWS, RATE = 300, 16, 1e-3
OTHERS = 2048
PLACES = 512


class LearnedReader(nn.Module):
    """Reads all positions of a text together.

    Parameters
    ----------
    knowledge : Knowledge
        Its known texts are fitted on, as they came through defence and codec.
    table : Tensor
        Shape (V, E).
    steps : int
        Of training.
    """

    def __init__(self, knowledge: Knowledge, table: Tensor, steps: int = STEPS) -> None:
        super().__init__()
        known = knowledge.known
        self._linear = LinearReader(known, table, first=not knowledge.causal)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(knowledge.seed)
            self.inward = nn.Linear(known[0].hidden.shape[1], WIDTH)
            self.places = nn.Embedding(PLACES, WIDTH)
            layer = nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
            )
            self.blocks = nn.TransformerEncoder(
                layer, BLOCKS, nn.LayerNorm(WIDTH), enable_nested_tensor=False
            )
            self.outward = nn.Linear(WIDTH, table.shape[1])
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)
        self.sharpness = nn.Parameter(torch.tensor(math.log(10.0)))
        self.register_buffer("table", table)
        self._fit(knowledge, steps)

    @classmethod
    def of(cls, knowledge: Knowledge, seen: Observation) -> LearnedReader:
        """Return the reader of all attacks that know the same; fitted once."""
        if "learned" not in knowledge.fitted:
            table = knowledge.table(seen)
            knowledge.fitted["learned"] = cls(knowledge, table)
        found: LearnedReader = knowledge.fitted["learned"]
        return found

    def forward(self, hidden: Tensor, mask: Tensor, among: Tensor) -> Tensor:
        """Return scores (B, T, K) of the K tokens that are named."""
        x = self._linear.standard(hidden)
        places = torch.arange(hidden.shape[1]).clamp(max=PLACES - 1)
        inside = self.inward(x) + self.places(places)
        made = self.outward(self.blocks(inside, src_key_padding_mask=~mask))
        guessed = x @ self._linear.weight + self._linear.middle + made
        rows = self._linear.table[among]
        near = guessed @ rows.T - rows.square().sum(1) / 2
        scale = self._linear.table.square().sum(1).mean()
        scores: Tensor = near / scale * self.sharpness.exp()
        return scores

    @torch.no_grad()
    def scores(self, hidden: Tensor) -> Tensor:
        """Return scores (T, V) of all tokens."""
        mask = torch.ones(1, len(hidden), dtype=torch.bool)
        every = torch.arange(len(self._linear.table))
        found: Tensor = self(hidden[None], mask, every)[0]
        return found

    @torch.enable_grad()  # those who fit it may be reading already
    def _fit(self, knowledge: Knowledge, steps: int) -> None:
        known = knowledge.known
        generator = torch.Generator().manual_seed(knowledge.seed)
        stepper = torch.optim.AdamW(self.parameters(), RATE)
        plan = torch.optim.lr_scheduler.OneCycleLR(stepper, RATE, total_steps=steps)
        vocabulary = len(self._linear.table)
        for _ in range(steps):
            rows = torch.randint(len(known), (ROWS,), generator=generator)
            picked = [known[int(row)] for row in rows]
            ids = nn.utils.rnn.pad_sequence([p.ids for p in picked], True, -1)
            hidden = nn.utils.rnn.pad_sequence([p.hidden for p in picked], True)
            mask = ids >= 0
            drawn = torch.randint(vocabulary, (OTHERS,), generator=generator)
            among, places = torch.cat([ids[mask], drawn]).unique(return_inverse=True)
            scores = self(hidden, mask, among)[mask]
            loss = F.cross_entropy(scores, places[: len(scores)])
            stepper.zero_grad()
            loss.backward()
            stepper.step()
            plan.step()
        self.requires_grad_(False)
