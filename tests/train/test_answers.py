"""Answers are of the model's own logits, whatever its checkpoint likes better."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from atlas_flwr.data import resolve_model, tokenizer_of
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.train.answers import Decoding, answered
from atlas_flwr.trunk import LocalTrunk

TOKENS = 8
LIKED = [
    {"repetition_penalty": 5.0},
    {"no_repeat_ngram_size": 1},
    {"num_beams": 3, "length_penalty": 9.0},
    {"top_p": 0.01},
    {"min_p": 0.9},
    {"top_k": 1},
    {"typical_p": 0.01},
    {"epsilon_cutoff": 0.5},
]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of(resolve_model("tiny", progress=False))


FORBIDDEN = [
    {"bad_words_ids": [[token] for token in range(3, 200)]},
    {"suppress_tokens": [*range(3, 200)]},
]


def answers(tokenizer, cut, temperature, liked):
    path = resolve_model("tiny", progress=False).path
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    for name, value in liked.items():
        setattr(model.generation_config, name, value)
    if cut:
        parts = partition(model, SplitPlan(1, 1))
        model = SplitModel(parts.head, parts.tail, LocalTrunk(parts.trunk)).eval()
        for name, value in liked.items():
            setattr(model.generation_config, name, value)
    decoding = Decoding(TOKENS, temperature, seed=3)
    prompts = tokenizer(["A rose is a rose is a rose", "Grass"])["input_ids"]
    return [*answered(model, tokenizer, prompts, decoding, 2)]


@pytest.mark.parametrize("liked", LIKED, ids=lambda liked: next(iter(liked)))
@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "split"])
def test_a_checkpoints_own_likings_change_no_answer(tokenizer, cut, temperature, liked):
    plain = answers(tokenizer, cut, temperature, {})

    assert answers(tokenizer, cut, temperature, liked) == plain


@pytest.mark.parametrize("forbidden", FORBIDDEN, ids=lambda asked: next(iter(asked)))
def test_tokens_that_a_checkpoint_forbids_stay_forbidden(tokenizer, forbidden):
    plain = answers(tokenizer, True, 0.0, {})

    assert answers(tokenizer, True, 0.0, forbidden) != plain
