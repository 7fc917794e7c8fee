"""A text is found by optimising it, in models that read both ways, too."""

from __future__ import annotations

import pytest
import torch

from atlas_flwr.data import resolve_model
from atlas_flwr.lora import AdapterState
from atlas_flwr.privacy import Observation, Recording, parse_defence
from atlas_flwr.privacy.attacks.soft import optimised
from atlas_flwr.privacy.knowledge import Knowledge, PublicModel
from atlas_flwr.split import SplitPlan, partition
from atlas_flwr.wire import codec_named

PLAN, LENGTH = SplitPlan(1, 1), 8


@pytest.mark.parametrize("name", ["tiny", "tiny-bert"])
def test_what_a_reader_only_suspects_is_told_by_what_crossed(name):
    parts = partition(resolve_model(name).path, PLAN)
    drawn = torch.Generator().manual_seed(0)
    vocabulary = parts.head.config.vocab_size
    texts = torch.randint(10, vocabulary, (2, LENGTH), generator=drawn)
    known = PublicModel(
        lambda plan: parts, [Recording("0", 1, PLAN, AdapterState(), [], [])]
    )
    nothing = Observation("0", 1, 0, "1/1", torch.zeros(1, 1), None, None)
    with torch.no_grad():
        sent = known.crossing(nothing, texts)
    seen = [Observation("0", 1, 0, "1/1", hidden, None, None) for hidden in sent]
    knows = Knowledge(
        known, [], parse_defence("none"), codec_named("raw"), causal=name == "tiny"
    )
    # Both texts are suspected alike, among others: only the crossing tells them apart.
    scores = torch.randn(LENGTH, vocabulary, generator=drawn)
    scores.scatter_(1, texts.T, 4.0)
    for text, crossed in zip(texts, seen, strict=True):
        assert torch.equal(optimised(knows, crossed, scores.log_softmax(1)), text)
