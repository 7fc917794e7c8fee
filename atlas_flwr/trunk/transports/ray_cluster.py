# SPDX-License-Identifier: Apache-2.0
"""The Ray cluster that this process is in: waited for, started, asked what it has."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from atlas_flwr.errors import TrunkError

__all__ = ["check_gpus", "own_ray", "wait_for_ray"]

_SLOW_START = "timed out during startup"  # how Ray says that it gave up waiting


@contextmanager
def own_ray() -> Iterator[None]:
    """Start a Ray cluster on this machine, for a trunk alone, and stop it.

    One that runs already, or that a file in ``/tmp/ray`` still names, is left alone.
    Ray waits half a minute for a process of its own and gives up, which happens on a
    machine that is busy or reads Ray from a cold disk. It is asked three times.

    Raises
    ------
    TrunkError
        If it did not start then.
    """
    for tries_left in (2, 1, 0):
        try:
            ray.init(
                address="local",
                num_cpus=1,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            break
        except Exception as error:  # Ray's own class for it is Exception
            ray.shutdown()
            if _SLOW_START not in str(error):
                raise
            if not tries_left:
                raise TrunkError(
                    f"Ray did not start on this machine, tried three times: {error} "
                    "Free some CPU and memory, or use trunk='local'"
                ) from None
    try:
        yield
    finally:
        ray.shutdown()


def wait_for_ray(timeout: float = 300.0) -> None:
    """Wait until Ray runs in this process.

    Raises
    ------
    TrunkError
        If it does not start in so many seconds.
    """
    deadline = time.monotonic() + timeout
    while not ray.is_initialized():
        if time.monotonic() > deadline:
            raise TrunkError(
                f"Ray did not start in this process within {timeout:.0f} s; the Ray "
                "trunk is for Flower's simulation (flwr run on a local SuperLink), "
                "elsewhere choose another trunk"
            )
        time.sleep(0.05)


def check_gpus(wanted: int) -> None:
    """Refuse to wait for GPUs that the Ray cluster does not have.

    Raises
    ------
    TrunkError
        If it has fewer than are wanted.
    """
    resources: Any = ray.cluster_resources  # untyped
    found = int(resources().get("GPU", 0))
    if found < wanted:
        raise TrunkError(
            f"{wanted} trunk-replicas on GPUs want one each, and this Ray cluster has "
            f"{found}; lower trunk-replicas, or set trunk-device='cpu'"
        )
