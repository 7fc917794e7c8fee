# SPDX-License-Identifier: Apache-2.0
"""What a trunk elsewhere is compared by: the same for the same files alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from atlas_flwr.config import load_config
from atlas_flwr.errors import ConfigError
from atlas_flwr.split import SplitPlan
from atlas_flwr.split.tensors import CheckpointTensors
from atlas_flwr.train.same_model import check_same, described
from atlas_flwr.train.weights import ModelFiles
from tests.families import build

PLAN = SplitPlan(1, 1)


def saved(folder, change=0.0):
    """Save a model with one of its norms changed; return its files."""
    torch.manual_seed(0)
    model = build("llama")
    with torch.no_grad():
        model.model.norm.weight += change
    model.save_pretrained(folder)
    base = ModelFiles.of(load_config({"model": "tiny"}))
    return replace(base, source=replace(base.source, path=str(folder)))


def test_a_copy_is_the_same_model_and_other_weights_are_not(tmp_path):
    def told(name, change=0.0, start=""):
        files = saved(tmp_path / name, change)
        return described(files, files.outline(), PLAN, start)

    ours = told("ours")
    check_same(told("copy", start="x"), ours)
    with pytest.raises(ConfigError, match="digest"):
        check_same(told("other", 0.5), ours)


def test_of_the_weights_a_few_vectors_alone_are_read(tmp_path, monkeypatch):
    files, sizes = saved(tmp_path), []

    def read(self, name, before=CheckpointTensors.read):
        found = before(self, name)
        sizes.append(found.dim())
        return found

    monkeypatch.setattr(CheckpointTensors, "read", read)
    described(files, files.outline(), PLAN)
    assert sizes
    assert set(sizes) == {1}
