"""How many labels a step can have, counted in the batches themselves."""

from __future__ import annotations

from math import ceil

import pytest

from atlas_flwr.data import (
    Example,
    load_examples,
    load_task,
    resolve_model,
    sample_batches,
    tokenizer_of,
)
from atlas_flwr.data.batches import CausalCollator
from atlas_flwr.data.completions import CompletionCollator
from atlas_flwr.data.drawing import sample_examples
from atlas_flwr.data.label_counts import most_labels, usual_labels
from atlas_flwr.data.responses import GenerationCollator
from atlas_flwr.types import NO_LABEL

ANSWERS = ["Yes.", "A long answer, of many words.", "no", "x" * 90, "Perhaps so"]
DRAWN = {"batch_size": 3, "steps": 5, "seed": 1}


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of(resolve_model("tiny", progress=False))


def fullest(collate, examples):
    """Count the labels of real batches."""
    made = [batch.labels for batch in sample_batches(examples, collate, **DRAWN)]
    return max(ceil(int((labels != NO_LABEL).sum()) / 3) for labels in made)


def test_of_answers_it_is_what_the_fullest_of_the_batches_has(tokenizer):
    collate = GenerationCollator(tokenizer, load_task("dialog"), 24)
    examples = [Example("Well?\n" * n, answer=a) for n, a in enumerate(ANSWERS, 1)]
    drawn = sample_examples(examples, **DRAWN)
    assert most_labels(collate, drawn) == fullest(collate, examples)
    longest = max(most_labels(collate, [[example]]) for example in examples)
    assert usual_labels(collate, examples, 1, seed=0) == longest == 23


def test_of_texts_it_is_what_their_pieces_have(tokenizer, tmp_path):
    (tmp_path / "t.yaml").write_text("kind: completion\npath: x\nformat: lines\n")
    collate = CompletionCollator(tokenizer, load_task(str(tmp_path / "t.yaml")), 12)
    texts = [Example(answer) for answer in ANSWERS]
    pieces = collate.prepared(texts)
    drawn = sample_examples(pieces, **DRAWN)
    assert most_labels(collate, drawn) == fullest(collate, pieces)
    assert usual_labels(collate, texts, 3, seed=0) == 11


def test_of_classes_it_is_the_longest_word(tokenizer):
    task = load_task("spam")
    collate = CausalCollator(tokenizer, task, 48)
    words = [len(tokenizer(f" {word}")["input_ids"]) for word in task.labels]
    assert usual_labels(collate, (), 8, seed=0) == max(words)


def test_what_is_likely_is_near_what_clients_then_have(tokenizer):
    task = load_task("french")
    collate = GenerationCollator(tokenizer, task, 96)
    examples = load_examples(task)
    found = usual_labels(collate, examples, 8, seed=0)
    given = {"batch_size": 8, "steps": 64}
    real = [
        most_labels(collate, sample_examples(examples[n::20], seed=n, **given))
        for n in (3, 4, 5)
    ]
    assert found == pytest.approx(sum(real) / 3, rel=0.25)
