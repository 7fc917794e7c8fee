"""The learned reader learns, whoever fits it, and wherever."""

from __future__ import annotations

import torch

from atlas_flwr.privacy import parse_defence
from atlas_flwr.privacy.attacks.learned import LearnedReader
from atlas_flwr.privacy.knowledge import Knowledge, KnownText, PublicModel
from atlas_flwr.wire import codec_named

VOCABULARY, WIDTH = 50, 8


def known_texts(count, drawn):
    table = torch.randn(VOCABULARY, WIDTH, generator=drawn)
    texts = []
    for _ in range(count):
        ids = torch.randint(VOCABULARY, (6,), generator=drawn)
        before = torch.cat([torch.zeros(1, WIDTH), table[ids][:-1]])
        texts.append(KnownText(ids, table[ids] + 2 * before))  # no linear map undoes it
    return table, texts


def test_it_reads_what_a_linear_map_cannot_though_no_gradients_are_wanted_around_it():
    table, texts = known_texts(80, torch.Generator().manual_seed(0))
    nobody = PublicModel(lambda plan: None, [])
    knows = Knowledge(
        nobody, texts[:60], parse_defence("none"), codec_named("raw"), causal=True
    )
    with torch.no_grad():
        reader = LearnedReader(knows, table, steps=60)
    right, linear = [], []
    for text in texts[60:]:
        right += (reader.scores(text.hidden).argmax(1) == text.ids).tolist()
        linear += (reader._linear.scores(text.hidden).argmax(1) == text.ids).tolist()
    assert sum(right) > sum(linear) + 10
