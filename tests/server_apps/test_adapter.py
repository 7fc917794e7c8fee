"""Whole runs that train something else than LoRA."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import MessageType
from transformers import AutoModelForCausalLM

from atlas_flwr.budget import client_memory
from atlas_flwr.config import load_config
from atlas_flwr.data import (
    resolve_model,
)
from atlas_flwr.lora import ia3_shapes
from atlas_flwr.server_apps.checkpoint import load_checkpoint
from atlas_flwr.train.weights import ModelFiles
from tests.server_apps.test_run import (
    Killed,
    accuracies,
    check_exported,
    run,
    summary,
)


def states(folder):
    return load_checkpoint(folder.checkpoint_dir).state


def trained(folder, group):
    prefix = f"group/{group}/dense/"
    found = {k: v for k, v in states(folder).items() if k.startswith(prefix)}
    return {k.removeprefix(prefix): v for k, v in found.items()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return run(folder, adapter="ia3", local_steps=4)


def test_a_run_with_ia3_moves_every_vector_of_every_cluster_and_learns(unbroken):
    told = summary(unbroken)
    loss = [r["mean_loss"] for r in told["per_round"]]
    assert loss[-1] < loss[0]
    source = resolve_model("tiny")
    whole = AutoModelForCausalLM.from_pretrained(source.path)
    shapes = {f"{name}.ia3_l": s for name, s in ia3_shapes(whole).items()}
    for group in set(told["clusters"].values()):
        found = trained(unbroken, group)
        assert {k: v.shape for k, v in found.items()} == shapes
        assert all((v != 1).any() for v in found.values())
    one, two = (trained(unbroken, group) for group in (0, 1))
    assert all((one[k] != two[k]).any() for k in one)
    assert set(told["ranks"].values()) == {0}


def test_a_run_with_ia3_sends_a_small_part_of_loras_bytes(unbroken, tmp_path):
    lora = run(tmp_path, local_steps=4)
    assert summary(unbroken)["bytes_up"] < summary(lora)["bytes_up"]
    path = "adapters/0/adapter_model.safetensors"
    ours, theirs = (f.path / path for f in (unbroken, lora))
    assert ours.stat().st_size < theirs.stat().st_size / 4


def test_a_run_with_prompts_moves_each_clusters_own_and_learns(tmp_path):
    folder = run(tmp_path, adapter="prompt", prompt_tokens=5, local_steps=4)
    loss = [r["mean_loss"] for r in summary(folder)["per_round"]]
    assert loss[-1] < loss[0]
    begun = states(folder)["initial/dense/prompt_embeddings"]
    source = resolve_model("tiny")
    whole = AutoModelForCausalLM.from_pretrained(source.path)
    table = whole.get_input_embeddings().weight.detach().numpy()
    assert all((row == table).all(1).any() for row in begun)
    one, two = (trained(folder, group)["prompt_embeddings"] for group in (0, 1))
    assert one.shape == (5, 32)
    assert (one != begun).all(1).any()
    assert (one != two).any()


def test_a_killed_run_continues_to_the_same_numbers(tmp_path):
    def kill(message):
        config = next(iter(message.content.config_records.values()))
        late = config.get("server-round") == 2
        if late and message.metadata.message_type == MessageType.EVALUATE:
            raise Killed
        return "deliver"

    given = {"adapter": "ia3", "nodes": 2, "num_clusters": 1}
    unbroken = run(tmp_path, **given, run_name="unbroken")
    with pytest.raises(Killed):
        run(tmp_path, kill, **given, run_name="broken")
    continued = run(tmp_path, **given, resume=str(tmp_path / "broken"))
    assert accuracies(continued) == accuracies(unbroken)
    expected, got = states(unbroken), states(continued)
    assert expected.keys() == got.keys()
    for key, value in expected.items():
        assert np.array_equal(got[key], value), key


@pytest.mark.parametrize(
    ("adapter", "model", "split"),
    [
        ("ia3", "tiny", "u-shaped"),
        pytest.param("ia3", "tiny", "vanilla", marks=pytest.mark.slow),
        pytest.param("ia3", "tiny-bert", "u-shaped", marks=pytest.mark.slow),
        pytest.param("prompt", "tiny", "vanilla", marks=pytest.mark.slow),
        ("prompt", "tiny-bert", "u-shaped"),
    ],
)
def test_exported_adapters_on_the_whole_model_score_as_the_split_run_did(
    tmp_path, adapter, model, split
):
    folder = run(tmp_path, adapter=adapter, model=model, split=split, local_steps=4)
    # PEFT puts prompts before the padding of a batch, so it gets texts one by one.
    check_exported(folder, model, batch=1 if adapter == "prompt" else 16)


@pytest.mark.parametrize(
    ("strategy", "adapter"),
    [
        ("oracle", "ia3"),
        ("fedavg", "prompt"),
        pytest.param("fedprox", "ia3", marks=pytest.mark.slow),
        pytest.param("local", "prompt", marks=pytest.mark.slow),
        pytest.param("centralized", "ia3", marks=pytest.mark.slow),
    ],
)
def test_every_strategy_that_takes_other_adapters_learns(tmp_path, strategy, adapter):
    more = {"num_rounds": 1, "local_steps": 4, "learning_rate": 0.05}
    folder = run(tmp_path, adapter=adapter, strategy=strategy, nodes=2, **more)
    loss = [r["mean_loss"] for r in summary(folder)["per_round"]]
    assert loss[-1] < loss[0]
    assert list((folder.path / "adapters").iterdir())


def test_devices_get_the_cuts_that_they_hold_with_ia3(tmp_path):
    config = load_config({"model": "tiny", "adapter": "ia3"})
    architecture = (
        ModelFiles.of(config).outline().architecture(config.target_list, adapter="ia3")
    )
    sizes = [
        client_memory(architecture, head=head, tail=1, rank=0, batch=8, length=48).total
        for head in (1, 3)
    ]
    folder = run(
        tmp_path,
        adapter="ia3",
        devices=",".join(f"{size}B" for size in sizes),
        device_order="cycle",
        num_rounds=1,
    )
    assert summary(folder)["plans"] == {"0": "1/1", "1": "3/1", "2": "1/1", "3": "3/1"}
