"""FlowerTune's four tasks, on local rows with the columns of its data sets."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from atlas_flwr.data import load_task
from atlas_flwr.data.models import resolve_model, tokenizer_of
from atlas_flwr.data.responses import GenerationCollator
from atlas_flwr.data.tasks import read_examples

ROWS = {
    "vicgalle/alpaca-gpt4": [
        {"instruction": "Name a colour.", "input": "", "output": "Blue.", "text": "-"},
        {"instruction": "Sum up.", "input": "A tale.", "output": "One.", "text": "-"},
    ],
    "medalpaca/medical_meadow_medical_flashcards": [
        {"instruction": "Answer truthfully", "input": "What is it?", "output": "It."},
    ],
    "FinGPT/fingpt-sentiment-train": [
        {"input": "Shares fell.", "output": "negative", "instruction": "Sentiment?"},
    ],
    "flwrlabs/code-alpaca-20k": [
        {"instruction": "Add.", "input": "1, 2", "output": "1 + 2\n"},
        {"instruction": "Say hello.", "input": "", "output": "print('hello')"},
    ],
}


def as_flowertune(name: str, row: dict[str, str]) -> str:
    """Write a row's whole text as its app does: columns renamed, then one template."""
    asked = row["instruction"]
    if name in ("finance", "code"):
        asked = f"{asked} {row['input']}"
    if name == "medical":
        asked = row["input"]
    return (
        "Below is an instruction that describes a task. Write a response that "
        f"appropriately completes the request.\n### Instruction:\n{asked}\n"
        f"### Response: {row['output']}"
    )


@pytest.mark.parametrize("name", ["general", "medical", "finance", "code"])
def test_a_task_writes_rows_as_flowertune_does_and_learns_the_response(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(dataset: str, split: str) -> list[dict[str, Any]]:
        assert split == "train"
        return ROWS[dataset]

    library = types.ModuleType("datasets")
    vars(library)["load_dataset"] = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", library)
    read_examples.cache_clear()  # of another test's rows
    task = load_task(f"flowertune-{name}")
    examples = read_examples(task).examples
    rows = ROWS[task.reading.dataset]
    wanted = sorted(as_flowertune(name, row) for row in rows)
    assert sorted(e.text + e.answer for e in examples) == wanted
    tokenizer = tokenizer_of(resolve_model("tiny"))
    collate = GenerationCollator(tokenizer, task, max_length=512)
    for example in examples:
        row = collate.row(example)
        said = tokenizer.decode(row.said[:-1])  # but for the token that ends it
        assert said.strip() == example.answer.strip()
    read_examples.cache_clear()
