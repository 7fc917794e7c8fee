"""Scores of answers: the libraries' own figures, in any language, without surprises."""

from __future__ import annotations

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.data.generation import SCORES
from atlas_flwr.report.summary import SCORES as REPORTED
from atlas_flwr.train.scores import SCORERS, mean_scores


def score(name, answer, reference):
    return mean_scores([name], [answer], [reference])[name]


def longest_common(one, other):
    """Length of the longest common subsequence, by its definition."""
    if not one or not other:
        return 0
    if one[0] == other[0]:
        return 1 + longest_common(one[1:], other[1:])
    return max(longest_common(one[1:], other), longest_common(one, other[1:]))


def test_a_task_may_name_what_can_be_computed_and_reported():
    assert set(SCORES) == set(SCORERS) == set(REPORTED)


words = st.lists(st.sampled_from(["rose", "grün", "дом", "is"]), max_size=5)


@given(words, words)
def test_rouge_l_is_that_of_words_of_any_language(answer, reference):
    found = score("rouge_l", " ".join(answer), " ".join(reference))
    common = longest_common(answer, reference)
    wanted = 2 * common / (len(answer) + len(reference)) if common else 0.0
    assert found == pytest.approx(wanted)


def test_signs_of_a_script_without_blanks_are_words():
    assert score("rouge_l", "今日は晴れ", "明日は晴れ") == pytest.approx(4 / 5)


@pytest.mark.parametrize("name", SCORES)
def test_the_reference_itself_is_the_best_answer_and_none_the_worst(name):
    text = "Über den Wolken muß die Freiheit wohl grenzenlos sein."
    assert score(name, f" {text}\n", text) == pytest.approx(1.0)
    assert score(name, "", text) == 0.0
    assert 0 <= score(name, "Etwas anderes.", text) < 0.5


def test_a_short_answer_has_a_bleu_above_zero():
    found = score("bleu", "a red rose", "a red tulip")
    assert 0 < found < 1
    assert sacrebleu.corpus_bleu(["a rose"], [["a tulip"]]).score < 100 * found


def test_chrf_is_sacrebleus():
    answer, reference = "grünes Gras", "das grüne Gras"
    wanted = sacrebleu.CHRF().sentence_score(answer, [reference]).score
    assert score("chrf", answer, reference) == pytest.approx(wanted / 100)


def test_a_tasks_score_is_the_mean_of_its_answers():
    found = mean_scores(["exact_match"], ["a  b", "c", "d"], ["a b", "C", "d"])
    assert found == {"exact_match": pytest.approx(2 / 3)}
