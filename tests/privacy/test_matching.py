"""A gradient at the tail's cut tells every token that was learned, and no other."""

from __future__ import annotations

import pytest
import torch

from atlas_flwr.data import resolve_model
from atlas_flwr.lora import AdapterState
from atlas_flwr.privacy import ATTACKS, Observation, Recording, parse_defence
from atlas_flwr.privacy.attacks.matching import matched
from atlas_flwr.privacy.knowledge import Knowledge, PublicModel
from atlas_flwr.split import SplitPlan, partition
from atlas_flwr.split.passes import end_model
from atlas_flwr.wire import codec_named

PATH, PLAN = resolve_model("tiny").path, SplitPlan(2, 1)
LENGTH, LEARNED = 9, slice(4, 9)


@pytest.fixture(scope="module")
def parts():
    return partition(PATH, PLAN)


def text(parts, seed, ids):
    """Let a tail learn the last tokens of a text in a batch of two such texts."""
    drawn = torch.Generator().manual_seed(seed)
    width = parts.tail.config.hidden_size
    answer = torch.randn(1, LENGTH, width, generator=drawn).requires_grad_()
    labels = torch.full((1, LENGTH), -100)
    labels[0, LEARNED] = ids[LEARNED]
    loss = end_model(parts.tail, answer, labels=labels).loss / 2
    (grad,) = torch.autograd.grad(loss, answer)
    hidden = torch.zeros(LENGTH, width)
    return Observation("0", 1, 0, "2/1", hidden, answer[0].detach(), grad[0])


def knowledge(parts, *seen, defence="none"):
    known = [Recording("0", 1, PLAN, AdapterState(), list(seen), [])]
    model = PublicModel(lambda plan: parts, known)
    return Knowledge(model, [], parse_defence(defence), codec_named("raw"), causal=True)


def drawn_ids(seed):
    return torch.randint(
        10, 250, (LENGTH,), generator=torch.Generator().manual_seed(seed)
    )


def test_it_reads_what_was_learned_and_nothing_where_nothing_was(parts):
    ids = drawn_ids(0)
    seen = text(parts, 0, ids)
    (read,) = ATTACKS["gradient-matching"].read(knowledge(parts, seen), [seen])
    assert torch.equal(read[LEARNED], ids[LEARNED])
    assert (read[: LEARNED.start] == -1).all()


def test_another_texts_gradient_tells_nothing_of_this_one(parts):
    ids, other = drawn_ids(0), text(parts, 1, drawn_ids(1))
    seen = Observation(**{**vars(text(parts, 0, ids)), "gradient": other.gradient})
    (read,) = ATTACKS["gradient-matching"].read(knowledge(parts, seen), [seen])
    assert (read == ids).sum() <= 1


@pytest.mark.parametrize("defence", ["gaussian:0.3", "laplace:0.3"])
def test_noise_does_not_hide_it(parts, defence):
    ids = drawn_ids(2)
    seen, drawn = text(parts, 2, ids), torch.Generator().manual_seed(0)
    sent = parse_defence(defence).gradients(seen.gradient, drawn)
    seen = Observation(**{**vars(seen), "gradient": sent})
    places = matched(knowledge(parts, seen, defence=defence), seen)
    read = {p.place: int(p.tokens[p.costs.argmin()]) for p in places}
    right = [read.get(i) == int(ids[i]) for i in range(LENGTH)[LEARNED]]
    assert sum(right) >= len(right) - 1


def test_both_directions_join_in_one_score(parts):
    ids = drawn_ids(3)
    seen = text(parts, 3, ids)
    scores = torch.randn(LENGTH, parts.head.config.vocab_size).log_softmax(1)
    joined = ATTACKS["bisr"].joined(knowledge(parts, seen), seen, scores)
    assert torch.equal(joined[LEARNED].argmax(1), ids[LEARNED])
    assert torch.equal(joined[: LEARNED.start], scores[: LEARNED.start])


@pytest.mark.parametrize("lacking", ["answer", "gradient"])
def test_an_observation_without_answer_or_gradient_is_refused(parts, lacking):
    seen = Observation(**{**vars(text(parts, 0, drawn_ids(0))), lacking: None})
    with pytest.raises(ValueError, match="an answer and the gradient"):
        matched(knowledge(parts, seen), seen)
