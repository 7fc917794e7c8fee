# SPDX-License-Identifier: Apache-2.0
"""A trunk on another machine, and whether it holds the model of this run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from atlas_flwr.errors import ConfigError
from atlas_flwr.split import SplitPlan
from atlas_flwr.split.tensors import CheckpointTensors
from atlas_flwr.train.outline import Outline
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk.host import Endpoint
from atlas_flwr.trunk.transports.access import Access
from atlas_flwr.trunk.transports.owner_requests import Served

__all__ = ["check_same", "described", "owned_elsewhere"]

VECTORS = 8  # that are hashed: norms and biases, from all over the model


def described(
    files: ModelFiles, outline: Outline, plan: SplitPlan, start: str = ""
) -> Served:
    """Say what the trunk of a plan is, of the files that are here.

    Parameters
    ----------
    files, outline : ModelFiles, Outline
        The model. Outlines cannot be made in several threads at once, so it is given.
    plan : SplitPlan
        Whose trunk.
    start : str
        Tells one start of a trunk from another.
    """
    return Served(
        start=start,
        model=files.source.path,
        cut=str(plan),
        blocks=outline.num_layers,
        width=int(outline.model.config.get_text_config().hidden_size),
        classes=files.classes,
        dtype=str(files.dtype).removeprefix("torch."),
        digest=_digest(files.source.path, outline.model),
    )


@contextmanager
def owned_elsewhere(
    access: Access, files: ModelFiles, outline: Outline, plan: SplitPlan
) -> Iterator[Endpoint]:
    """Own a trunk that `atlas-flwr trunk` serves; leave it in the end.

    Parameters
    ----------
    access : Access
        The way to it.
    files, outline : ModelFiles, Outline
        The model that it must have.
    plan : SplitPlan
        Whose trunk it must be.

    Raises
    ------
    ConfigError
        If it serves another model.
    TrunkLost
        If nothing answers.
    """
    from atlas_flwr.trunk.transports.grpc_channel import own_grpc

    ca, shown = access.ca or None, access.shown
    with own_grpc(access.address, access.secret, ca, shown=shown) as host:
        check_same(host.served, described(files, outline, plan))
        yield Endpoint(host, access.address, access.ca, shown)


def check_same(theirs: Served, ours: Served) -> None:
    """Refuse a trunk whose model is not the run's.

    Raises
    ------
    ConfigError
        With all that differs.
    """
    skipped = ("start", "model")  # each machine keeps its files where it likes
    there, here = asdict(theirs), asdict(ours)
    unlike = [key for key in here if key not in skipped and here[key] != there[key]]
    if unlike:
        told = ", ".join(f"{key} {there[key]!r} (run: {here[key]!r})" for key in unlike)
        raise ConfigError(
            [
                f"the trunk serves {theirs.model!r} with {told}: start `atlas-flwr "
                "trunk` with the run config of this run"
            ],
            ["trunk-access"],
        )


def _digest(path: str, model: Any) -> str:
    """Hash some of the stored vectors: the same for the same files, and read fast."""
    tensors = CheckpointTensors(path, model)
    vectors = [name for name, p in model.named_parameters() if p.dim() == 1]
    stored = sorted(set(vectors).intersection(tensors.names))
    told = hashlib.sha256()
    for name in stored[:: max(1, len(stored) // VECTORS)]:
        told.update(name.encode())
        told.update(tensors.read(name).float().contiguous().numpy().tobytes())
    return told.hexdigest()[:16]
