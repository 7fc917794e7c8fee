"""Which adapters answer, and what is said of those that are not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from atlas_flwr.errors import AdapterError, DataError
from atlas_flwr.lora import PROMPT_KEY, AdapterState, ia3_key, save_peft
from atlas_flwr.report import ClientTrained
from atlas_flwr.serving import Choice, PromptForm, chosen
from atlas_flwr.split import SplitPlan
from atlas_flwr.train.weights import ModelFiles
from tests.serving.conftest import LAYERS, made_run, random_state


def pick(folder, **choice):
    files = ModelFiles.of(folder.config())
    return chosen(folder, folder.config(), Choice(**choice), files, files.outline())


def same(state, expected):
    assert set(state.factors) == set(expected.factors)
    return all(
        torch.allclose(f.delta(), expected.factors[n].delta(), atol=1e-6)
        for n, f in state.factors.items()
    )


def test_a_cluster_answers_with_its_adapters_cut_and_task(folder):
    found = pick(folder, cluster="1")
    assert same(found.state, random_state(1))
    assert found.plan == SplitPlan(2, 1)
    assert [f.name for f in found.forms] == ["advice"]
    assert found.title == "cluster 1"


def test_a_client_answers_with_its_clusters_adapters_and_its_own_layers(folder):
    found = pick(folder, client="3")
    own = random_state(7, LAYERS[-1:])
    assert same(found.state, random_state(1).merged(own))
    assert "cluster 1" in found.title


def test_layers_that_a_client_kept_elsewhere_are_missed(folder):
    with pytest.raises(DataError, match=r"not on this machine.*--cluster"):
        pick(folder, client="0")


def test_where_nothing_is_kept_a_client_is_its_cluster(tmp_path):
    folder = made_run(tmp_path, personal="none")
    assert same(pick(folder, client="2").state, random_state(0))


def test_the_base_model_has_no_adapters_and_all_tasks(folder):
    found = pick(folder, base=True)
    assert not found.state.factors
    assert {f.name for f in found.forms} == {"counting", "advice"}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({}, "0, 1: choose one with --cluster"),
        ({"client": "9"}, "no client 9 .* there are 0, 1, 2, 3"),
        ({"cluster": "5"}, "no adapters of cluster 5 .* there are 0, 1"),
        ({"cluster": "../0"}, "there are 0, 1"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(folder, choice, message):
    with pytest.raises(DataError, match=message):
        pick(folder, **choice)


def test_one_folder_of_adapters_need_not_be_named(own_folder):
    root = own_folder.path / "adapters"
    (root / "0").rename(root / "all")
    for file in (root / "1").iterdir():
        file.unlink()
    (root / "1").rmdir()
    assert same(pick(own_folder).state, random_state(0))
    assert pick(own_folder, cluster="all").title == "all clients"


def test_a_run_that_has_not_ended_has_no_adapters_yet(own_folder):
    root = own_folder.path / "adapters"
    root.rename(own_folder.path / "elsewhere")
    with pytest.raises(DataError, match=r"when it has ended.*--base"):
        pick(own_folder, cluster="0")
    elsewhere = pick(own_folder, adapters=own_folder.path / "elsewhere" / "0")
    assert same(elsewhere.state, random_state(0))


def test_a_run_of_classifiers_has_nothing_to_chat_with(tmp_path):
    folder = made_run(tmp_path, personal="none")
    text = folder.config_path.read_text().replace("model: tiny", "model: tiny-bert")
    folder.config_path.write_text(text)
    with pytest.raises(DataError, match="nothing to chat with"):
        pick(folder, cluster="0")


def test_adapters_of_another_model_are_refused_by_layer(folder, tmp_path):
    where = tmp_path / "other"
    state = random_state(0, ["model.layers.11.self_attn.q_proj"])
    save_peft(where, state, base_model="other", causal=True)
    with pytest.raises(AdapterError, match=r"layers\.11.*another model"):
        pick(folder, adapters=where)
    with pytest.raises(AdapterError, match="adapter_config"):
        pick(folder, adapters=Path(tmp_path))


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        (ia3_key("model.layers.11.mlp.down_proj"), (1, 48)),
        (ia3_key("model.layers.0.mlp.down_proj"), (1, 7)),
        (PROMPT_KEY, (4, 31)),
    ],
)
def test_vectors_and_prompts_of_another_model_are_refused(key, shape, folder, tmp_path):
    state = AdapterState(dense={key: np.ones(shape, np.float32)})
    save_peft(tmp_path, state, base_model="other", causal=True)
    with pytest.raises(AdapterError, match="of another model"):
        pick(folder, adapters=tmp_path)


def test_learned_positions_that_write_nothing_are_refused(own_folder):
    (own_folder.path / "adapters" / "0" / "summary.safetensors").touch()
    with pytest.raises(DataError, match="summary-positions"):
        pick(own_folder, cluster="0")


def test_a_task_with_classes_has_no_form():
    told = {"name": "spam", "labels": ["no", "yes"], "template": "{text}"}
    assert PromptForm.told(told) is None


@pytest.mark.parametrize("text", ["", '{"tasks": [', "[]", '{"tasks": ["advice"]}'])
def test_a_damaged_file_of_tasks_is_named(own_folder, text):
    (own_folder.path / "adapters" / "1" / "tasks.json").write_text(text)
    for choice in ({"cluster": "1"}, {"base": True}):
        with pytest.raises(AdapterError, match=r"1/tasks\.json is damaged"):
            pick(own_folder, **choice)


def test_a_client_without_a_cluster_is_not_given_the_cluster_of_its_number(own_folder):
    late = ClientTrained(1, "4", "counting", None, 1.0, 1, 1, 1.0, 1, 1)
    own_folder.record(late)
    (own_folder.path / "adapters" / "1").rename(own_folder.path / "adapters" / "4")
    with pytest.raises(DataError, match=r"client 4 .* no cluster .*--cluster"):
        pick(own_folder, client="4")
