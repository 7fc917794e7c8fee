# SPDX-License-Identifier: Apache-2.0
"""What a client writes to be scored: its first prompts' answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from atlas_flwr.client_apps.answers import answers_record
from atlas_flwr.config import load_config
from atlas_flwr.data import load_examples, load_task, resolve_model, tokenizer_of
from atlas_flwr.data.responses import GenerationCollator
from atlas_flwr.lora import PROMPT_KEY, attach_prompt
from atlas_flwr.protocol import keys
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.trunk import LocalTrunk

POSITIONS, LEARNED = 48, 4
FILE = """
kind: generation
format: jsonl
path: rows.jsonl
prompt: "{question} "
response: "{answer}"
scores: [exact_match]
"""
ROWS = [
    {"question": "And green? Say it in few words only, if you can.", "answer": "Leaf"},
    {"question": "Why?", "answer": "Nobody knows."},
]


@pytest.fixture
def given(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "mine.yaml").write_text(FILE)
    task = load_task(str(tmp_path / "mine.yaml"))
    return tokenizer_of(resolve_model("tiny", progress=False)), task


def model(tokenizer):
    """A model that knows so many positions, and fails beyond them."""
    torch.manual_seed(0)
    size = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": POSITIONS}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    whole = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **size, **ends))
    parts = partition(whole.eval(), SplitPlan(1, 1))
    return SplitModel(parts.head, parts.tail, LocalTrunk(parts.trunk)).eval()


@pytest.mark.parametrize("learned", [0, LEARNED])
@pytest.mark.parametrize("tokens", [8, 40, 2 * POSITIONS])
def test_prompt_and_answer_are_within_what_a_model_knows(given, tokens, learned):
    tokenizer, task = given
    made = model(tokenizer)
    prompt = {PROMPT_KEY: np.zeros((learned, 16), np.float32)} if learned else {}
    collate = GenerationCollator(tokenizer, task, POSITIONS - learned)
    config = load_config({"score-tokens": tokens, "share-samples": 2})
    examples = list(load_examples(task))
    with attach_prompt(made, prompt):
        found = answers_record(made, tokenizer, task, collate, examples, config)
    assert found[keys.SCORED] == 2
    assert len(found[keys.ANSWERS]) == 2


def test_a_prompt_that_leaves_room_is_read_whole(given):
    tokenizer, task = given
    made = model(tokenizer)
    collate = GenerationCollator(tokenizer, task, POSITIONS)
    read = []
    made.generate = lambda ids, **_: read.append(ids) or ids
    config = load_config({"score-tokens": 8})
    short = [e for e in load_examples(task) if e.text.startswith("Why")]
    answers_record(made, tokenizer, task, collate, short, config)
    assert read[0][0].tolist() == collate.prompt(short[0])
