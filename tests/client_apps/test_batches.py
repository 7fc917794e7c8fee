"""What a client makes of its texts once, it has in the messages that follow."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from atlas_flwr.client_apps.batches import ClientBatches
from atlas_flwr.client_apps.identity import Identity
from atlas_flwr.config import RunConfig
from atlas_flwr.data import Example, load_task, resolve_model

EXAMPLE = Example("hello\n", answer="and so on")


def batches_of(path: Path, round: int = 1) -> ClientBatches:
    source = replace(resolve_model("tiny"), path=str(path))
    return ClientBatches(RunConfig(), Identity(0, 2, None), source, round)


def test_rows_are_cut_into_tokens_once_for_all_messages(tmp_path: Path) -> None:
    path = shutil.copytree(resolve_model("tiny").path, tmp_path / "model")
    task = load_task("dialog")
    first = batches_of(path).collator(task)
    assert batches_of(path, round=2).collator(task) is first
    assert first.row(EXAMPLE) is first.row(replace(EXAMPLE))
    assert first.row(EXAMPLE) is not first.row(replace(EXAMPLE, answer="but no"))


def test_a_tokenizer_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = shutil.copytree(resolve_model("tiny").path, tmp_path / "model")
    task = load_task("dialog")
    first = batches_of(path).collator(task)
    os.utime(path / "tokenizer.json", ns=(1, 1))
    assert batches_of(path).collator(task) is not first
