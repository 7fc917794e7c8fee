# SPDX-License-Identifier: Apache-2.0
"""Where to compute: a device's word in the configuration, and what is there."""

from __future__ import annotations

import re

import torch

from atlas_flwr.errors import ConfigError

__all__ = ["chosen_device", "device_problems"]

GPU = re.compile(r"cuda(?::(\d+))?")


def chosen_device(name: str) -> str:
    """Resolve ``"auto"``: a GPU where this process sees one.

    Raises
    ------
    ConfigError
        If it is no device's name, or a GPU that this process does not see.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    problems = device_problems("device", name)
    if problems:
        raise ConfigError(problems)
    return name


def device_problems(key: str, name: str) -> list[str]:
    """Say why a device cannot be had here; nothing if it can."""
    if name == "cpu":
        return []
    gpu = GPU.fullmatch(name)
    if gpu is None:
        return [f"{key}={name!r} is no device; write cpu, cuda or, of several, cuda:1"]
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if int(gpu[1] or 0) < count:
            return []
        return [f"{key}={name!r}: PyTorch sees {count} GPU(s), counted from 0"]
    if torch.version.cuda is None and torch.version.hip is None:
        why = (
            f"PyTorch {torch.__version__} is a build for CPUs; install one for your "
            "GPU (`make clean && make install TORCH_INDEX=`)"
        )
    else:
        why = (
            "PyTorch sees no GPU in this process: the driver does not answer, "
            "CUDA_VISIBLE_DEVICES hides it, or, in a simulation, Ray gave the client "
            "none (`atlas-flwr run --client-gpus 0.1`, or Flower's federation config "
            "client-resources-num-gpus=0.1)"
        )
    return [f"{key}={name!r}: {why}; or set {key}='cpu'"]
