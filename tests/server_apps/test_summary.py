"""Whole runs in which only summary positions cross the cut."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import MessageType
from safetensors.numpy import load_file

from atlas_flwr.config import load_config
from atlas_flwr.errors import ConfigError
from atlas_flwr.server_apps.checkpoint import load_checkpoint
from atlas_flwr.server_apps.export import SUMMARY_FILE
from atlas_flwr.split import SUMMARY_KEY
from atlas_flwr.train.weights import ModelFiles
from tests.server_apps.test_run import Killed, accuracies, run, summary

POSITIONS = 3
GIVEN = {"summary_positions": POSITIONS, "local_steps": 4, "cut": "2/1"}


def learned(folder, group):
    key = f"group/{group}/dense/{SUMMARY_KEY}"
    return load_checkpoint(folder.checkpoint_dir).state[key]


def losses(folder):
    return [entry["mean_loss"] for entry in summary(folder)["per_round"]]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs"), **GIVEN)


def test_a_run_learns_its_summary_positions_in_each_cluster(unbroken):
    assert losses(unbroken)[-1] < losses(unbroken)[0]
    begun = load_checkpoint(unbroken.checkpoint_dir).state[
        f"initial/dense/{SUMMARY_KEY}"
    ]
    one, two = (learned(unbroken, group) for group in (0, 1))
    assert begun.shape == one.shape == (1 + POSITIONS, 32)
    assert (one != begun).any(1).all()
    assert (one != two).any(1).all()


def test_they_are_exported_beside_the_adapters(unbroken):
    for group in set(summary(unbroken)["clusters"].values()):
        found = load_file(unbroken.adapter_dir(str(group)) / SUMMARY_FILE)
        assert np.array_equal(found[SUMMARY_KEY], learned(unbroken, group))


def test_what_crosses_does_not_grow_with_the_texts(tmp_path):
    sizes = {}
    for length in (24, 48):
        for positions in (0, POSITIONS):
            given = {
                "summary_positions": positions,
                "max_length": length,
                "cut": "2/1",
                "local_steps": 1,
                "num_rounds": 1,
                "strategy": "atlas",
                "clustering": "none",
            }
            folder = run(tmp_path, nodes=2, **given)
            sizes[positions, length] = summary(folder)["bytes_up"]
    assert sizes[0, 48] > 1.2 * sizes[0, 24]
    assert sizes[POSITIONS, 48] == pytest.approx(sizes[POSITIONS, 24], rel=0.001)
    assert sizes[POSITIONS, 48] < sizes[0, 48] / 2


@pytest.mark.parametrize(
    "given",
    [
        {"split": "vanilla", "cut": "2/-"},
        pytest.param({"model": "tiny-bert"}, marks=pytest.mark.slow),
        {"devices": "64MiB,128MiB", "cut": "auto"},
        *(
            pytest.param(given, marks=pytest.mark.slow)
            for given in (
                {"adapter": "ia3"},
                {"strategy": "mira", "mixing": 0.5},
                {"strategy": "splitlora", "ranks": "uniform"},
                {"personal": "tail"},
                {"align": 0.3},
                {"skip_gradients": 0.5},
            )
        ),
    ],
    ids=lambda given: "-".join(f"{k}={v}" for k, v in given.items()),
)
def test_it_learns_with_each_way_to_split_and_train(tmp_path, given):
    folder = run(tmp_path, **{**GIVEN, **given})
    assert losses(folder)[-1] < losses(folder)[0]


def test_a_killed_run_continues_to_the_same_numbers(tmp_path, unbroken):
    def kill(message):
        config = next(iter(message.content.config_records.values()))
        late = config.get("server-round") == 2
        if late and message.metadata.message_type == MessageType.EVALUATE:
            raise Killed
        return "deliver"

    with pytest.raises(Killed):
        run(tmp_path, kill, **GIVEN, run_name="broken")
    continued = run(tmp_path, **GIVEN, resume=str(tmp_path / "broken"))
    assert accuracies(continued) == accuracies(unbroken)
    for group in (0, 1):
        assert np.array_equal(learned(continued, group), learned(unbroken, group))


def test_the_constant_position_begins_as_the_token_that_begins_texts():
    files = ModelFiles.of(load_config({"model": "tiny"}))
    assert files.summary(2).shape == (3, 32)
    assert np.array_equal(files.summary(2)[:2], files.summary(1))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"split": "none"}, "nothing crosses"),
        ({"adapter": "prompt"}, "learned positions of its own"),
        ({"auxiliary-steps": 1}, "auxiliary-steps=1"),
        ({"strategy": "fedavg"}, "summary-positions"),
        ({"summary-positions": -1}, "summary-positions"),
    ],
)
def test_what_they_do_not_go_with_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        load_config({"summary-positions": 2, **given})
