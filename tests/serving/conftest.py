"""A run of two clusters as it lies on disk, with adapters that change every answer."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atlas_flwr.client_apps.store import ClientStore
from atlas_flwr.config import load_config
from atlas_flwr.data import load_task
from atlas_flwr.lora import AdapterState, LoraFactors, save_peft
from atlas_flwr.remedies.personal_layers import keep
from atlas_flwr.report import (
    ClientTrained,
    Clustered,
    RoundEnded,
    RunEnded,
    RunFolder,
    RunStarted,
)
from atlas_flwr.server_apps.model_card import ModelCard
from atlas_flwr.train.weights import ModelFiles

TASKS = {
    "counting": 'prompt: "Count after {start}: "\nresponse: "{next}"',
    "advice": 'prompt: "{problem} {detail}"\nresponse: "{advice}"',
}
CLUSTERS = {"0": 0, "1": 1, "2": 0, "3": 1}
LAYERS = [f"model.layers.{n}.self_attn.q_proj" for n in range(6)]


def random_state(seed, layers=LAYERS):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    return AdapterState(
        {name: LoraFactors(drawn(2, 32), drawn(32, 2), 0.5) for name in layers}
    )


def made_run(root: Path, **changes) -> RunFolder:
    """Write a run's folder; client 3 has kept its last block to itself."""
    for name, templates in TASKS.items():
        text = f"kind: generation\nformat: jsonl\npath: rows.jsonl\n{templates}\n"
        (root / f"{name}.yaml").write_text(text)
    files = [str(root / f"{name}.yaml") for name in TASKS]
    config = load_config(
        {
            "model": "tiny",
            "tasks": ",".join(files),
            "runs-dir": str(root / "runs"),
            "cut": "2/1",
            "personal": "tail",
            **changes,
        }
    )
    folder = RunFolder.create(config)
    folder.record(RunStarted(0, len(CLUSTERS)))
    folder.record(Clustered(1, CLUSTERS, 2))
    for client, cluster in CLUSTERS.items():
        seen = ClientTrained(1, client, "counting", cluster, 1.0, 1, 1, 1.0, 1, 1)
        folder.record(replace(seen, plan="2/1"))
    folder.record(RoundEnded(1, 1.0, 10, 20))
    folder.record(RunEnded(1))
    found = ModelFiles.of(config)
    for cluster, task in enumerate(files):
        path = folder.adapter_dir(cluster)
        hub_name = found.source.hub_name
        save_peft(path, random_state(cluster), base_model=hub_name, causal=True)
        ModelCard(found, [load_task(task)], 64).write(path)
    own = random_state(7, LAYERS[-1:])
    keep(ClientStore.of(folder.run_id(), 3), own, 1)
    return folder


@pytest.fixture(scope="session")
def kept(tmp_path_factory) -> RunFolder:
    """A run that all tests share, and none changes."""
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        cache_in(root, patch)
        return made_run(root)


@pytest.fixture
def folder(kept, monkeypatch) -> RunFolder:
    cache_in(kept.path.parents[1], monkeypatch)
    return kept


@pytest.fixture
def own_folder(folder, tmp_path) -> RunFolder:
    """A copy that may be changed."""
    return RunFolder(Path(shutil.copytree(folder.path, tmp_path / "copy")))


def cache_in(root, patch):
    """Let clients keep their layers there; models stay where they are."""
    where = root / "cache" / "clients"
    patch.setattr(
        "atlas_flwr.client_apps.store.clients_folder", lambda run_id: where / run_id
    )
