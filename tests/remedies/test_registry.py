"""The registry of remedies, and that nothing else knows their names."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

import atlas_flwr
from atlas_flwr.config import RunConfig
from atlas_flwr.remedies import REMEDIES, RemedyKeys

ROOT = Path(atlas_flwr.__file__).parent
# Where a remedy is, what lists them, and what reports say of a run.
THEIRS = ("remedies", "report")


def test_every_remedy_has_a_name_of_its_own():
    names = [remedy.name for remedy in REMEDIES]
    assert len(set(names)) == len(names) == len(RemedyKeys.__bases__)


@pytest.mark.parametrize("entry", fields(RemedyKeys), ids=lambda entry: entry.name)
def test_only_remedies_read_their_keys(entry):
    # HetLoRA and FedProx are methods: their strategies take these two as arguments.
    if entry.name in ("rank_decay", "proximal_mu"):
        return
    read = re.compile(rf"config\.{entry.name}\b")
    for path in ROOT.rglob("*.py"):
        if path.relative_to(ROOT).parts[0] not in THEIRS:
            assert not read.search(path.read_text()), path


def test_all_remedies_are_off_unless_a_key_is_set():
    config = RunConfig()
    assert not [p for remedy in REMEDIES for p in remedy.problems(config)]
    assert not any(remedy.remembered_steps(config) for remedy in REMEDIES)
    assert all(remedy.every_step_crosses(config) for remedy in REMEDIES)
