"""Training on responses equals Hugging Face's, and its scores are those by hand."""

from __future__ import annotations

import json
from math import exp

import pytest
import torch
from transformers import AutoModelForCausalLM

from atlas_flwr.data import load_examples, load_task, resolve_model, tokenizer_of
from atlas_flwr.data.completions import CompletionCollator
from atlas_flwr.data.responses import GenerationCollator
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.train.evaluation import evaluate
from atlas_flwr.train.step import Step, task_loss
from atlas_flwr.trunk import LocalTrunk
from tests.data.templates import CHATML

FILE = """
kind: generation
format: jsonl
path: rows.jsonl
prompt: "{question} "
response: "{answer}"
"""
ROWS = [
    {"question": "What is red?", "answer": "A rose, and much else in the world."},
    {"question": "And green? Say it in a few words only.", "answer": "Grass."},
    {"question": "Why?", "answer": "Nobody knows why it is so."},
]


@pytest.fixture
def model():
    path = resolve_model("tiny", progress=False).path
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.fixture
def batch(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "mine.yaml").write_text(FILE)
    task = load_task(str(tmp_path / "mine.yaml"))
    tokenizer = tokenizer_of(resolve_model("tiny", progress=False))
    return GenerationCollator(tokenizer, task, 64)(list(load_examples(task)))


TALK = [
    {"role": "user", "content": "What is red?"},
    {"role": "assistant", "content": "A rose."},
    {"role": "user", "content": "And green?"},
    {"role": "assistant", "content": "Grass, of course."},
]
TEXTS = ["Once there was a rose, and it was red.", "Grass is green."]


def split_of(model, plan):
    if plan is None:
        return model
    parts = partition(model, plan)
    return SplitModel(parts.head, parts.tail, LocalTrunk(parts.trunk))


@pytest.mark.parametrize("plan", [SplitPlan(1, 1), SplitPlan(2, None), None], ids=str)
def test_each_answer_of_a_conversation_counts_as_in_hugging_faces_loss(
    model, tmp_path, plan
):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": TALK}))
    text = "kind: generation\nformat: jsonl\npath: rows.jsonl\n"
    (tmp_path / "talk.yaml").write_text(text + "messages: messages\nchat: true\n")
    task = load_task(str(tmp_path / "talk.yaml"))
    tokenizer = tokenizer_of(resolve_model("tiny", progress=False))
    tokenizer.chat_template = CHATML
    batch = GenerationCollator(tokenizer, task, 999)(list(load_examples(task)))
    text = tokenizer.apply_chat_template(TALK, tokenize=False).rstrip("\n")
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    labels = torch.full_like(ids, -100)
    for turn in TALK[1::2]:  # by character: a token is a byte here, or two
        begin = len(tokenizer(text[: text.index(turn["content"])])["input_ids"])
        end = len(tokenizer(text[: text.index(turn["content"])] + turn["content"])[0])
        labels[0, begin : end + 1] = ids[0, begin : end + 1]
    wanted = model(input_ids=ids, labels=labels).loss
    found = task_loss(Step(split_of(model, plan), batch, 0)).task
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("plan", [SplitPlan(1, 1), SplitPlan(2, None), None], ids=str)
@pytest.mark.parametrize("limit", [200, 16])
def test_a_text_is_scored_at_each_of_its_tokens(model, tmp_path, plan, limit):
    rows = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    text = "kind: completion\nformat: jsonl\npath: rows.jsonl\n"
    (tmp_path / "texts.yaml").write_text(text)
    task = load_task(str(tmp_path / "texts.yaml"))
    tokenizer = tokenizer_of(resolve_model("tiny", progress=False))
    collate = CompletionCollator(tokenizer, task, limit)
    pieces = collate.prepared(load_examples(task))
    found = evaluate(split_of(model, plan), [collate(pieces, prompt=True)], ())
    nats, tokens = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]])
        for start in range(0, ids.shape[1] - 1, limit - 1):
            piece = ids[:, start : start + limit]
            with torch.no_grad():
                loss = model(input_ids=piece, labels=piece).loss
            nats += float(loss) * (piece.shape[1] - 1)
            tokens += piece.shape[1] - 1
    assert found.tokens == tokens
    assert found.loss == pytest.approx(nats / tokens, rel=1e-5)


@pytest.mark.parametrize("plan", [SplitPlan(1, 1), SplitPlan(2, None), None], ids=str)
def test_loss_and_gradients_are_hugging_faces_on_the_same_labels(model, batch, plan):
    given = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "position_ids": batch.position_ids,
    }
    wanted = model(**given, labels=batch.labels).loss
    wanted.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    split = split_of(model, plan)
    loss = task_loss(Step(split, batch, 0)).task
    loss.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)
    table = split.get_input_embeddings().weight
    name = next(n for n in grads if n.endswith("embed_tokens.weight"))
    if not model.config.tie_word_embeddings:
        torch.testing.assert_close(table.grad, grads[name], rtol=1e-4, atol=1e-7)
    norm = next(n for n in grads if n.endswith("layers.0.input_layernorm.weight"))
    own = next(
        p
        for n, p in split.named_parameters()
        if n.endswith(norm.removeprefix("model."))
    )
    torch.testing.assert_close(own.grad, grads[norm], rtol=1e-4, atol=1e-7)


def test_scores_are_over_all_tokens_of_all_responses(model, batch):
    found = evaluate(model, [batch], ())
    with torch.no_grad():
        logits = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
        ).logits
    nats, right, tokens = 0.0, 0, 0
    for row, labels in zip(logits, batch.labels, strict=True):
        for t in range(1, len(labels)):
            if labels[t] != -100:
                nats -= float(row[t - 1].log_softmax(0)[labels[t]])
                right += int(row[t - 1].argmax() == labels[t])
                tokens += 1
    assert exp(found.loss) == pytest.approx(exp(nats / tokens), rel=1e-4)
    assert found.accuracy == pytest.approx(right / tokens)
    assert (found.examples, found.confusion) == (len(ROWS), ())
