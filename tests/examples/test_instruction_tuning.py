# SPDX-License-Identifier: Apache-2.0
"""examples/instruction-tuning, and every command of its how-to."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from atlas_flwr.cli.preflight import cleared
from atlas_flwr.data import load_examples, load_task, resolve_model, tokenizer_of
from tests.data.templates import CHATML

ROOT = Path(__file__).parents[2]
APP = ROOT / "examples" / "instruction-tuning"
HOW_TO = ROOT / "docs" / "instruction-tuning.md"


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A copy of the example, with a random model that has a chat template."""
    source = resolve_model("tiny")
    model = Path(shutil.copytree(source.path, tmp_path / "model"))
    tokenizer = tokenizer_of(source)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(model)
    copy = Path(shutil.copytree(APP, tmp_path / "examples" / APP.name))
    project = copy / "pyproject.toml"
    text = project.read_text()
    assert text.count('"smollm2"') == 1
    project.write_text(text.replace('"smollm2"', f'"{model}"'))
    return copy


def test_nothing_is_wrong_with_it_before_it_starts(app: Path) -> None:
    found = cleared(app, {"num-rounds": 1}, 4)
    assert found.notes == ()


def test_its_rows_belong_to_four_desks() -> None:
    examples = load_examples(load_task(str(APP / "desk.yaml")))
    owners = [example.owner for example in examples]
    assert len(owners) == 48
    assert {owners.count(owner) for owner in owners} == {12}


def test_the_how_to_shows_the_task_file_as_it_is() -> None:
    (shown,) = blocks(HOW_TO.read_text(), "yaml")
    assert (APP / "desk.yaml").read_text().endswith(shown)


def test_what_flowertunes_users_say_is_said_in_keys_that_there_are() -> None:
    text = HOW_TO.read_text().partition("## Coming from FlowerTune")[2]
    keys = {
        *tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"][
            "config"
        ]
    }
    rows = [row.split("|")[2] for row in text.splitlines() if row.startswith("| `")]
    told = [
        re.split("=", said)[0] for row in rows for said in re.findall("`(.+?)`", row)
    ]
    assert told
    assert set(told) <= keys


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_how_to_does_what_it_says(app: Path) -> None:
    commands = "set -eu\n" + "".join(blocks(HOW_TO.read_text(), "bash"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-c", commands],
        cwd=app.parents[1],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert len(re.findall(r"^  base ", ran.stdout, re.MULTILINE)) == 3
    (answer,) = (app / "answers.jsonl").read_text().splitlines()
    assert json.loads(answer).keys() == {"question", "answer"}
    assert "the model's chat template" in ran.stdout
