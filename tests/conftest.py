"""Settings for all tests: one thread, and properties that do not time out."""

import gc
import logging
import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("atlas", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("atlas")


def pytest_collection_finish() -> None:
    """Keep what is imported by now out of collections: clients collect in each round.

    A third of a whole run's time was spent looking through modules.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("flwr")
    before, logger.disabled = logger.disabled, False
    yield
    logger.disabled = before
