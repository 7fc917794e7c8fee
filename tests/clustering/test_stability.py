from __future__ import annotations

import numpy as np
import pytest

from atlas_flwr.clustering import METHODS, subsample_agreement
from atlas_flwr.errors import DataError
from tests.clustering.fingerprints import in_parts, mixture


@pytest.mark.parametrize("method", METHODS)
def test_clusters_that_are_there_are_stable(method):
    points, _ = in_parts(3, 5)
    assert subsample_agreement(points, 3, method=method) == 1


def test_clusters_that_are_not_there_are_not():
    points, _ = mixture(1, 20, noise=1.0)
    assert subsample_agreement(points, 3, seed=1) < 0.7


def test_the_number_that_is_there_is_the_most_stable():
    points, _ = mixture(3, 6, noise=0.7)
    found = {k: subsample_agreement(points, k, seed=2) for k in (2, 3, 4, 5)}
    assert max(found, key=lambda k: found[k]) == 3


@pytest.mark.parametrize(("n", "k"), [(8, 1), (4, 3), (1, 1)])
def test_what_cannot_disagree_has_no_stability(n, k):
    points = np.random.default_rng(0).standard_normal((n, 5))
    assert subsample_agreement(points, k) is None


@pytest.mark.parametrize("wrong", [{"samples": 1}, {"share": 0.0}, {"share": 1.0}])
def test_samples_that_compare_nothing_are_refused(wrong):
    with pytest.raises(DataError, match="2 or more"):
        subsample_agreement(np.eye(6), 2, **wrong)
