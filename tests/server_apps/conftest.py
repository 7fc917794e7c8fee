"""Runs measure memory, and collect garbage first: not what was imported, each time."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def imported_modules_are_no_garbage():
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
