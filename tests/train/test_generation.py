"""Training on responses equals Hugging Face's, and its scores are those by hand."""

from __future__ import annotations

import json
from math import exp

import pytest
import torch
from transformers import AutoModelForCausalLM

from atlas_flwr.data import load_examples, load_task, resolve_model, tokenizer_of
from atlas_flwr.data.responses import GenerationCollator
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.train.evaluation import evaluate
from atlas_flwr.train.step import Step, task_loss
from atlas_flwr.trunk import LocalTrunk

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
    split = model
    if plan is not None:
        parts = partition(model, plan)
        split = SplitModel(parts.head, parts.tail, LocalTrunk(parts.trunk))
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
