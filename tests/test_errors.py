from __future__ import annotations

import pickle

import pytest

from atlas_flwr.errors import ConfigError, DataError, SiteError, TrunkBusy


@pytest.mark.parametrize(
    "error",
    [
        ConfigError(["one", "two"], ["rounds"]),
        SiteError(["one", "two"]),
        DataError("one", "two"),
        TrunkBusy("full"),
    ],
)
def test_an_error_says_the_same_in_another_process(error):
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert vars(other) == vars(error)
