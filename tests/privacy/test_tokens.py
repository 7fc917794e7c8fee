"""Tokens answered at random: how private, by what, and what an attacker knows of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.cli.command import run_words
from atlas_flwr.cli.recorded import cases, recordings
from atlas_flwr.data import Batch, Example, load_task, resolve_model, tokenizer_of
from atlas_flwr.data.collation import collator_of
from atlas_flwr.errors import DataError
from atlas_flwr.privacy import parse_defence
from atlas_flwr.privacy.attacks.restoring import WEIGHTS, Restoring
from atlas_flwr.privacy.defences.vocabulary import Vocabulary
from atlas_flwr.privacy.knowledge import KnownText
from atlas_flwr.privacy.recorder import truth_of
from atlas_flwr.remedies import client_hooks
from tests.privacy.test_attack import recorded
from tests.privacy.test_own_examples import SECRET, Kept
from tests.remedies.test_chain import now

SIZE = 60


def vocabulary(size=SIZE, special=(0, 7)):
    table = torch.randn(size, 6, generator=torch.Generator().manual_seed(0))
    plain = [token for token in range(size) if token not in special]
    return Vocabulary(table, torch.tensor(plain))


def odds(found, words):
    """Return P(answer | token) of all tokens and plain answers."""
    every = torch.arange(len(words.table))
    columns = [found.token_odds(int(y), every, words).exp() for y in words.plain]
    return torch.stack(columns, dim=1)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 20))
def test_no_answer_is_likelier_than_epsilon_says_whatever_the_token(epsilon):
    table = odds(parse_defence(f"tokens:{epsilon}"), vocabulary())
    assert torch.allclose(table.sum(1), torch.ones(SIZE).double())
    ratio = table.max(0).values / table.min(0).values
    assert float(ratio.max()) <= math.exp(epsilon) * (1 + 1e-9)


def test_the_bound_is_met_and_so_is_not_said_too_small():
    table = odds(parse_defence("tokens:3"), vocabulary())
    assert float(table.max() / table.min()) == pytest.approx(math.exp(3))


def test_answers_are_drawn_as_probably_as_is_said():
    found, words, drawn = parse_defence("tokens:4"), vocabulary(), 6000
    table = odds(found, words)
    texts = [[5, 0] * (drawn // 2)]
    (answers,) = found.tokens(texts, words, SECRET)
    for token, said in ((5, answers[::2]), (0, answers[1::2])):
        counts = torch.bincount(torch.tensor(said), minlength=SIZE)[words.plain]
        wanted = table[token] * len(said)
        chi = float(((counts - wanted) ** 2 / wanted).sum())
        assert chi < 57 + 4 * (2 * 57) ** 0.5
        assert not set(said) & {0, 7}


def test_a_texts_answers_are_the_same_in_all_rounds_and_in_any_company():
    found, words = parse_defence("tokens:1"), vocabulary()
    one = found.tokens([[3, 4, 5] * 9], words, SECRET)
    again = found.tokens([[9], [3, 4, 5] * 9], vocabulary(), SECRET)
    assert one[0] == again[1]
    assert one != found.tokens([[3, 4, 5] * 9], words, b"another")
    assert len(set(one[0][::3])) > 1  # each place has a draw of its own


def test_neighbours_are_nearest_by_cosine_about_the_mean():
    words = vocabulary()
    off = words.table - words.table.mean(0)
    near = torch.nn.functional.cosine_similarity(off[:, None], off[None], dim=2)
    for token, row in zip((1, 30), words.nearest((1, 30), 9), strict=True):
        best = near[token, words.plain].topk(9).indices
        assert sorted(words.plain[best].tolist()) == row.tolist()
        assert token in row


def test_fewer_neighbours_answer_as_epsilon_grows():
    counts = [parse_defence(f"tokens:{e}").near(49152) for e in (1, 8, 10, 12, 20)]
    assert counts == [1024, 148, 20, 3, 1]


def test_joined_defences_replace_tokens_and_tell_their_odds():
    alone, words = parse_defence("tokens:2"), vocabulary()
    both = parse_defence("labels:1+tokens:2")
    texts, every = [[3, 4, 5]], torch.arange(SIZE)
    assert both.replaces_tokens
    assert both.tokens(texts, words, SECRET) == alone.tokens(texts, words, SECRET)
    assert torch.equal(
        both.token_odds(3, every, words), alone.token_odds(3, every, words)
    )


@pytest.mark.parametrize("model", ["tiny", "tiny-bert"])
def test_only_a_texts_own_tokens_are_read_otherwise(model):
    source, task = resolve_model(model), load_task("movies")
    tokenizer = tokenizer_of(source)
    plain = collator_of(source, tokenizer, task, 120)
    changed = plain.reading(lambda rows: [[n + 1 for n in row] for row in rows])
    texts = ["so good", "a much longer one", ""]
    before, after = (c([Example(t, 1) for t in texts]) for c in (plain, changed))
    assert before.true_ids is None
    assert torch.equal(after.true_ids, before.input_ids)
    assert torch.equal(after.labels, before.labels)
    sizes = [len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts]
    more = after.input_ids - before.input_ids
    assert more.sum(1).tolist() == sizes
    assert set(more.flatten().tolist()) == {0, 1}


def test_what_is_to_be_written_cannot_be_read_otherwise():
    source = resolve_model("tiny")
    collate = collator_of(source, tokenizer_of(source), load_task("dialog"), 40)
    with pytest.raises(DataError, match="only texts that have classes"):
        collate.reading(lambda rows: rows)


def test_a_clients_secret_answers_its_texts_in_every_round():
    task, source = load_task("movies"), resolve_model("tiny")
    plain = collator_of(source, tokenizer_of(source), task, 120)

    def read(kept):
        context = now(defence="tokens:4", model="tiny", tasks="movies,spam")
        object.__setattr__(context, "store", lambda: kept)
        batch = client_hooks(context).collating(plain)([Example("so good", 1)] * 3)
        assert torch.equal(batch.true_ids, plain([Example("so good", 1)] * 3).input_ids)
        return batch.input_ids.tolist()

    kept = Kept()
    assert read(kept) == read(kept) != read(Kept())


def test_a_record_keeps_the_texts_that_were_replaced():
    ids = torch.tensor([[3, 4, 5]])
    batch = Batch(ids, ids * 0 + 1, ids * 0 - 100, ids[0, :1] * 0, true_ids=ids + 1)
    assert truth_of(batch, 0).ids.tolist() == [4, 5, 6]


class Grammar:
    """A public model after which each token is followed by the next one, nearly."""

    generation_config = SimpleNamespace(eos_token_id=1)

    def __call__(self, input_ids, use_cache, past_key_values=None):
        logits = torch.zeros(*input_ids.shape, SIZE)
        logits.scatter_(2, ((input_ids + 1) % SIZE)[..., None], 6.0)
        return SimpleNamespace(logits=logits, past_key_values=self)

    def reorder_cache(self, rows):
        pass


@pytest.mark.parametrize("defence", ["tokens:4", "santext:7"])
def test_a_text_is_restored_by_odds_and_grammar_together(defence):
    words, found = vocabulary(special=()), parse_defence(defence)
    own, before, after = list(range(12, 40)), [10, 11], [3, 3]
    (read,) = found.tokens([own], words, SECRET)
    knows = SimpleNamespace(
        defence=found, vocabulary=words, frames={"0": (before, after)}
    )
    text = torch.tensor([*before, *read, *after, 2])
    restored = Restoring(knows, Grammar()).text(text, "0").tolist()
    kept = sum(a == b for a, b in zip(own, read, strict=True))
    right = sum(a == b for a, b in zip(own, restored[2:-3], strict=True))
    assert kept < 20 < right
    assert restored[:2] + restored[-3:] == [*before, *after, 2]


def test_a_text_that_no_template_precedes_is_restored_by_a_model_of_several_ends():
    words, found = vocabulary(special=()), parse_defence("tokens:4")
    own = list(range(2, 30))
    (read,) = found.tokens([own], words, SECRET)
    knows = SimpleNamespace(defence=found, vocabulary=words, frames={"0": ([], [])})
    public = Grammar()
    public.generation_config = SimpleNamespace(eos_token_id=[1, 0])
    restored = Restoring(knows, public).text(torch.tensor(read), "0").tolist()
    right = [sum(map(int.__eq__, own, one)) for one in (read, restored)]
    assert right[0] < 20 < right[1]


class Sure(Grammar, torch.nn.Module):
    """The same, which takes nothing else for possible."""

    def __call__(self, input_ids, use_cache, past_key_values=None):
        out = super().__call__(input_ids, use_cache, past_key_values)
        return SimpleNamespace(logits=4 * out.logits, past_key_values=self)


@pytest.mark.parametrize(
    ("follow", "weight"), [(True, WEIGHTS[0]), (False, WEIGHTS[-1])]
)
def test_the_public_model_counts_as_far_as_known_texts_are_what_it_expects(
    follow, weight
):
    words, found = vocabulary(special=()), parse_defence("tokens:5")
    texts = [list(range(start, start + 20)) for start in (10, 15, 20, 25)]
    if not follow:
        texts = [[token * 7 % SIZE for token in text] for text in texts]
    sent = found.tokens(texts, words, SECRET)
    known = [
        KnownText(
            torch.tensor([9, *own]), None, slice(1, None), torch.tensor([9, *read])
        )
        for own, read in zip(texts, sent, strict=True)
    ]
    knows = SimpleNamespace(
        defence=found, vocabulary=words, known=known, whole=lambda: Sure()
    )
    chosen = Restoring.of(knows)
    assert chosen.weight == weight
    for other in WEIGHTS:
        assert chosen.right(known) >= replace(chosen, weight=other).right(known)


@pytest.mark.slow
def test_a_run_is_read_as_far_as_its_answers_are_true(tmp_path):
    folder = recorded(tmp_path, defence="tokens:8")
    (case,) = cases(folder.config(), recordings(folder), 12, 0)
    knows = case.knowledge
    kept = [t.sent[t.private] == t.ids[t.private] for t in knows.known]
    size, found = len(knows.vocabulary), knows.defence
    wanted = found.kept(size) / found.near(size) + (1 - found.kept(size)) / size
    assert float(torch.cat(kept).float().mean()) == pytest.approx(wanted, abs=0.03)
    words = ["attack", str(folder.path), "--attacks", "verified,restored"]
    assert run_words([*words, "--texts", "12"]) == 0
    verified, restored = json.loads((folder.path / "privacy.json").read_text())
    assert verified["defence"] == restored["defence"] == "tokens:8"
    assert verified["token_accuracy"] == pytest.approx(wanted, abs=0.1)
    assert verified["upper_bound"] == restored["upper_bound"] > 0.95
