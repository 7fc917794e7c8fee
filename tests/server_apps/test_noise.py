"""Fingerprints with noise, as ATLAS's own client sends them."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from atlas_flwr.client_apps.app import app
from atlas_flwr.clustering import gaussian_sigma
from atlas_flwr.testing import local_grid

BASE = {
    "model": "tiny",
    "split": "none",
    "tasks": "questions,movies",
    "train-examples": 16,
    "batch-size": 4,
    "fingerprint-batches": 4,
    "fingerprint-dim": 4096,
}


def sent(**changes):
    """What a client answers when it is asked for its fingerprint."""
    config = {**BASE, **{key.replace("_", "-"): v for key, v in changes.items()}}
    content = RecordDict({"config": ConfigRecord({"server-round": 1})})
    with local_grid(app, 1, run_config=config) as grid:
        (node,) = grid.get_node_ids()
        (reply,) = grid.send_and_receive([Message(content, node, "query.fingerprint")])
    assert not reply.has_error(), reply.error.reason
    return reply.content["fingerprint"]["sketch"].numpy()


@pytest.fixture(scope="module")
def clean():
    return sent()


@pytest.mark.parametrize(("epsilon", "delta"), [(8e4, 1e-5), (1e4, 1e-3), (1e3, 1e-5)])
def test_noise_has_the_sigma_of_its_epsilon_and_delta(clean, epsilon, delta):
    """The fingerprint's scale is free, so noise shows against what is left of it.

    With u the sketch at unit norm, the client sends c (u + sigma z), rounded: along u
    there is c, but for one of N draws, and across it c sigma.
    """
    found = sent(fingerprint_epsilon=epsilon, fingerprint_delta=delta)
    assert found.dtype == np.int8
    assert found.shape == clean.shape == (4, 4096)
    unit = clean.ravel() / np.linalg.norm(clean.astype(float))
    along = float(found.ravel() @ unit)
    across = found.ravel() - along * unit
    sigma = gaussian_sigma(epsilon, delta)
    # Both are exact to a few standard errors: sigma of 1 along u, and 1 in 181 across.
    assert across.std() / along == pytest.approx(sigma, rel=0.03 + 5 * sigma)
    assert np.abs(found).max() == 127


def test_strong_noise_drowns_the_fingerprint(clean):
    found = sent(fingerprint_epsilon=1.0).ravel()
    assert abs(np.corrcoef(found, clean.ravel())[0, 1]) < 0.05


def test_noise_is_new_each_time_whatever_the_seed_of_the_run(clean):
    assert np.array_equal(sent(), clean)
    first, second = (sent(fingerprint_epsilon=1.0).ravel() for _ in range(2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05
