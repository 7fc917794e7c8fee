"""Answers with IA3 and prompts through a cut, against PEFT's on the whole model."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from peft import IA3Config, PromptTuningConfig, get_peft_model

from atlas_flwr.cohort.trunk_sessions import TrunkSessions
from atlas_flwr.lora import PROMPT_KEY, Scaling
from atlas_flwr.split import SplitPlan, part_info, partition
from atlas_flwr.train.answers import Decoding, answered
from atlas_flwr.train.model import adapted_split
from atlas_flwr.trunk import TrunkEngine, connect, serve_local
from atlas_flwr.types import OptimizerSpec
from tests.families import build
from tests.train import test_ia3, test_prompt

PLANS = [SplitPlan(1, 1), SplitPlan(2, None)]
TOKENS = 8
PROMPTS = [[5, 9, 31, 7, 22, 40], [11, 3, 8], [50]]
STARTS = {"ia3": test_ia3.start, "prompt": test_prompt.start}


class Numbers:
    """A tokenizer whose texts are the numbers of their tokens."""

    pad_token_id, eos_token_id = 0, None

    def decode(self, row, **_):
        return " ".join(map(str, row))


def of_peft(adapter, model, state):
    """Put PEFT's own adapter on a model."""
    if adapter == "prompt":
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        made = get_peft_model(model, config)
        table = made.prompt_encoder["default"].embedding.weight
        table.data = torch.from_numpy(state.dense[PROMPT_KEY].copy())
        return made
    made = get_peft_model(model, IA3Config(task_type="CAUSAL_LM"))
    named = {
        key.removeprefix("base_model.model.").removesuffix(".default"): value
        for key, value in made.named_parameters()
    }
    for key, value in state.dense.items():
        named[key].data = torch.from_numpy(value.copy())
    return made


@contextmanager
def split_of(model, plan, state):
    """Give the client's own model, its trunk behind a session and frames."""
    parts = partition(model, plan)
    info, engine = part_info(parts.trunk), TrunkEngine(parts.trunk)
    with serve_local("written", engine) as address:
        count = model.config.num_hidden_layers
        sessions = TrunkSessions(engine, address, OptimizerSpec(), info.block_of, count)
        trunk = connect(address, token=sessions.open("0", plan, state))
        mine = sessions.on_client(plan, state)
        with adapted_split(parts.head, parts.tail, trunk, mine, Scaling()) as adapted:
            yield adapted.model


def lengths(trunk):
    """Count the positions of each call, as they are made."""
    found, extend = [], trunk.extend

    def counted(call, *rest):
        found.append(call.hidden.shape[1])
        return extend(call, *rest)

    trunk.extend = counted
    return found


@pytest.mark.parametrize("way", ["beams", "drafts", "lost"])
def test_a_prompt_is_kept_once_whatever_is_taken_back_or_forgotten(way):
    model = build("llama").eval()
    model.generation_config.eos_token_id = None
    state = test_prompt.start(model)
    ids = torch.tensor([[7, 8, 9, 10, 7, 8, 9, 11, 7, 8]])
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    asked |= {"max_new_tokens": 16, "pad_token_id": 0, "do_sample": False}
    beams = {"num_beams": 3} if way == "beams" else {}
    drafts = {"prompt_lookup_num_tokens": 3} if way == "drafts" else {}
    with split_of(model, PLANS[0], state) as split:
        crossed = lengths(split.trunk)
        cache = split.new_cache()
        if way == "lost":  # as a conversation goes on, whose trunk has forgotten it
            first = asked | {"max_new_tokens": 5}
            asked["input_ids"] = split.generate(**first, past_key_values=cache)
            asked["attention_mask"] = torch.ones_like(asked["input_ids"])
            asked["max_new_tokens"] = 11
            split.trunk.forget(cache.texts)
        found = split.generate(**asked, **beams, **drafts, past_key_values=cache)
    whole = of_peft("prompt", model, state).eval()
    asked |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    wanted = whole.generate(**asked | {"max_new_tokens": 16}, **beams)
    assert torch.equal(found, wanted)
    assert cache.rebuilt == (way == "lost")
    sizes = {"beams": {14, 1}, "drafts": {17, 4, 3, 2, 1}, "lost": {14, 1, 19}}
    assert {*crossed} <= sizes[way]


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("adapter", STARTS)
def test_answers_are_pefts_token_for_token_alone_and_in_a_padded_batch(
    adapter, family, plan
):
    model, bare = build(family).eval(), build(family).eval()
    for one in (model, bare):
        one.generation_config.eos_token_id = None
    state = STARTS[adapter](model)
    given = {"max_new_tokens": TOKENS, "pad_token_id": 0, "do_sample": False}
    with split_of(model, plan, state) as split:
        crossed = lengths(split.trunk)
        found = [*answered(split, Numbers(), PROMPTS, Decoding(TOKENS), 3)]
    before = len(state.dense.get(PROMPT_KEY, ()))
    assert crossed == [before + len(PROMPTS[0]), *[1] * (TOKENS - 1)]
    whole = of_peft(adapter, model, state).eval()
    moved = 0
    for prompt, answer in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        wanted = whole.generate(**asked, **given)[0, len(prompt) :]
        assert answer.text == Numbers().decode(wanted.tolist())
        base = bare.generate(**asked, **given)[0, len(prompt) :]
        moved += not torch.equal(base, wanted)
    assert moved, "the adapters change nothing that is written"
