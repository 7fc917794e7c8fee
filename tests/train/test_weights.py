"""The whole model is loaded as its parts are."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from atlas_flwr.config import load_config
from atlas_flwr.data import resolve_model
from atlas_flwr.errors import PlanError
from atlas_flwr.split import SplitPlan, part_info
from atlas_flwr.train.weights import ModelFiles


def saved(folder, classes):
    """Save a classifier of so many classes; return what loads it for six."""
    source = resolve_model("tiny-bert")
    model = AutoModelForSequenceClassification.from_pretrained(
        source.path, num_labels=classes
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.path).save_pretrained(folder)
    keys = {"model": str(folder), "tasks": "questions", "strategy": "fedavg"}
    return model, ModelFiles.of(load_config(keys))


@pytest.mark.parametrize("classes", [3, 6])
def test_a_stored_classifier_is_used_where_it_has_as_many_classes(classes, tmp_path):
    model, files = saved(tmp_path, classes)
    whole, tail = files.whole(), files.parts(SplitPlan(1, 1)).tail
    assert whole.classifier.out_features == 6
    for name, value in tail.named_parameters():
        other = whole.get_parameter(part_info(tail).global_name(name))
        torch.testing.assert_close(other, value)
    same = whole.classifier.weight.shape == model.classifier.weight.shape
    assert same == (classes == 6)
    if same:
        torch.testing.assert_close(whole.classifier.weight, model.classifier.weight)


def test_other_tensors_of_other_sizes_are_refused(tmp_path):
    model, files = saved(tmp_path, 6)
    model.config.vocab_size += 1
    model.config.save_pretrained(tmp_path)
    with pytest.raises(PlanError, match="word_embeddings"):
        files.whole()
