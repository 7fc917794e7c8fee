"""A conversation says what a whole model says, and sends nothing twice."""

from __future__ import annotations

import pytest
import torch

from atlas_flwr.config import load_config
from atlas_flwr.data import tokenizer_of
from atlas_flwr.data.turns import Turn
from atlas_flwr.lora import AdapterState
from atlas_flwr.serving import (
    Chosen,
    Conversation,
    Decoding,
    PromptForm,
    Prompts,
    served,
)
from atlas_flwr.split import SplitModel, SplitPlan
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import SessionSpec
from atlas_flwr.trunk.transports.local import EngineTrunk
from tests.serving.test_prompts import ADVICE, TEMPLATE
from tests.stand_in_gpu import DEVICE, stand_in_gpu

PLAN = SplitPlan(2, 1)
DECODING = Decoding(max_new_tokens=6)


@pytest.fixture(scope="module")
def config():
    return load_config({"model": "tiny"})


@pytest.fixture(scope="module")
def files(config):
    return ModelFiles.of(config)


@pytest.fixture
def found(config, files):
    picked = Chosen("the base model", AdapterState(), PLAN, ())
    with served(files, files.outline(), config, picked, PLAN) as found:
        yield found


@pytest.fixture
def prompts(files):
    tokenizer = tokenizer_of(files.source)
    tokenizer.chat_template = TEMPLATE
    return Prompts(tokenizer, [])


def crossings(trunk):
    """Record how many positions each call takes."""
    lengths, extend = [], trunk.extend

    def watched(call, place, keep=0):
        lengths.append(call.hidden.shape[1])
        return extend(call, place, keep)

    trunk.extend = watched
    return lengths


def silent(piece):
    pass


def specials(prompts):
    """Tokens that a random model may say, and that end up in no text."""
    return sorted(prompts.tokenizer.all_special_ids)


def whole_answers(files, prompts, questions):
    """Answer with the unsplit model, the whole conversation each time."""
    model, tokenizer = files.whole(), prompts.tokenizer
    model.generation_config.suppress_tokens = specials(prompts)
    ids, said = torch.zeros(1, 0, dtype=torch.long), []
    for question in questions:
        more = ("\n" if said else "") + f"<user>{question}\n<assistant>"
        new = tokenizer(more, add_special_tokens=False, return_tensors="pt").input_ids
        before = torch.cat([ids, new], dim=1)
        ids = model.generate(before, max_new_tokens=6, do_sample=False)
        answer = ids[0, before.shape[1] :]
        said.append(tokenizer.decode(answer, skip_special_tokens=True))
    return said


def test_its_turns_are_the_unsplit_models_and_cross_once(found, files, prompts):
    questions = ["hello", "and then?", "why"]
    lengths = crossings(found.model.trunk)
    found.model.generation_config.suppress_tokens = specials(prompts)
    talk = Conversation(found.model, prompts, DECODING)
    heard = []
    said = [talk.ask(question, heard.append) for question in questions]
    assert said == whole_answers(files, prompts, questions)
    assert "".join(heard) == "".join(said)
    assert sum(lengths) == len(talk._ids) - 1  # the last token is not read
    assert talk.written == 6
    assert [turn.role for turn in talk.turns] == ["user", "assistant"] * 3


def test_a_client_on_a_gpu_says_the_same(files, prompts):
    parts = files.parts(PLAN)
    said = []
    for device in ("cpu", DEVICE):
        with stand_in_gpu():
            engine = files.trunk(PLAN).engine()
            for part in (parts.head, parts.tail):
                part.to(device)
            trunk = EngineTrunk(engine, engine.open(SessionSpec(PLAN)))
            model = SplitModel(parts.head, parts.tail, trunk).eval()
            talk = Conversation(model, prompts, DECODING)
            said.append([talk.ask(question, silent) for question in ("hello", "why")])
    assert said[0] == said[1]


def test_what_was_said_is_forgotten_with_its_cache(found, prompts):
    talk = Conversation(found.model, prompts, DECODING)
    first = talk.ask("hello", silent)
    talk.ask("more", silent)
    assert found.host.stats().caches == 1
    talk.reset()
    assert found.host.stats().caches == 0
    assert talk.ask("hello", silent) == first


def test_an_interruption_keeps_what_was_said_and_begins_a_new_cache(found, prompts):
    talk, trunk = Conversation(found.model, prompts, DECODING), found.model.trunk
    lengths, extend = crossings(trunk), trunk.extend

    def interrupted(*args):
        if len(lengths) == 3:
            raise KeyboardInterrupt
        return extend(*args)

    trunk.extend = interrupted
    with pytest.raises(KeyboardInterrupt):
        talk.ask("hello", silent)
    assert talk.turns[-1].role == "assistant"
    assert talk.written == 3
    trunk.extend = extend
    read = len(talk._ids)
    talk.ask("go on", silent)
    assert lengths[3] > read  # all of it crosses again


def test_a_tasks_template_is_put_around_each_question_alone(found, prompts):
    own = Prompts(prompts.tokenizer, [ADVICE])
    talk = Conversation(found.model, own, DECODING)
    assert "task advice" in talk.style
    first = talk.ask("rain", silent)
    assert talk.ask("rain", silent) == first
    assert talk.turns == []


def test_a_system_text_of_a_chat_task_comes_first(found, prompts):
    form = PromptForm("help", "{q}", chat=True, system="Be brief.")
    talk = Conversation(found.model, Prompts(prompts.tokenizer, [form]), DECODING)
    talk.ask("hello", silent)
    assert talk.turns[0] == Turn("system", "Be brief.")
    talk.reset()
    assert len(talk.turns) == 1


def test_a_model_without_a_chat_template_writes_on(found, files):
    talk = Conversation(found.model, Prompts(tokenizer_of(files.source), []), DECODING)
    assert "no chat template" in talk.style
    lengths = crossings(found.model.trunk)
    talk.ask("Once upon", silent)
    talk.ask(" a time", silent)
    more = talk.prompts.tokenizer(" a time", add_special_tokens=False).input_ids
    assert lengths[1:6] == [1] * 5
    assert lengths[6:] == [1 + len(more), *[1] * 5]


def test_draws_differ_from_turn_to_turn_and_not_from_time_to_time(found, prompts):
    drawn = Decoding(max_new_tokens=6, temperature=2.0, seed=3)
    said = []
    for _ in range(2):
        talk = Conversation(found.model, prompts, drawn)
        said.append([talk.ask("hello", silent), talk.ask("hello", silent)])
        talk.reset()
    assert said[0] == said[1]
    assert said[0][0] != said[0][1]
