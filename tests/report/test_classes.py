"""Scores that count each class the same, as scikit-learn has them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score

from atlas_flwr.report.classes import balanced_accuracy, macro_f1

answers = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1)


@given(answers)
@pytest.mark.filterwarnings("ignore")
def test_they_are_scikit_learns(pairs):
    right, said = (np.array(column) for column in zip(*pairs, strict=True))
    counts = confusion_matrix(right, said, labels=range(4))
    expected = balanced_accuracy_score(right, said)
    assert balanced_accuracy(counts) == pytest.approx(expected)
    assert macro_f1(counts) == pytest.approx(f1_score(right, said, average="macro"))
