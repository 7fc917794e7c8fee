"""A few labelled texts are enough where the trunk tells classes apart."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from atlas_flwr.privacy import ATTACKS, Observation, parse_defence
from atlas_flwr.privacy.knowledge import Knowledge, LabelledText
from atlas_flwr.wire import codec_named

ATTACK = ATTACKS["label-completion"]
WIDTH, CLASSES, WORD = 16, 3, 2


def crossing(label, drawn, said=0):
    """Return a text of a class, and behind it the word of what its client said."""
    own = torch.randn(6, WIDTH, generator=drawn)
    own[:, label] += 3
    word = torch.zeros(WORD, WIDTH)
    word[:, said] = 100
    return torch.cat([own, word])


def read(labels, seed=0, *, known=None, said=None):
    """Attack texts of these classes, with some of known ones (their own by default)."""
    drawn = torch.Generator().manual_seed(seed)
    kinds = torch.arange(8 * CLASSES) % CLASSES
    told = kinds if known is None else known
    texts = [
        LabelledText(crossing(int(kind), drawn)[:-WORD], int(label), WORD)
        for kind, label in zip(kinds, told, strict=True)
    ]
    model = SimpleNamespace(deep=lambda seen, hidden: hidden)
    knows = Knowledge(
        model,
        [],
        parse_defence("none"),
        codec_named("raw"),
        causal=True,
        answers={"0": range(CLASSES)},
        labelled=lambda client: texts,
    )
    said = labels if said is None else said
    seen = []
    for label, word in zip(labels, said, strict=True):
        hidden = crossing(int(label), drawn, int(word))
        seen.append(Observation("0", 1, 0, "2/1", hidden, hidden, None))
    return torch.cat(ATTACK.read(knows, seen))


LABELS = torch.randint(CLASSES, (40,), generator=torch.Generator().manual_seed(5))


def test_it_reads_classes_without_a_tail_or_a_gradient():
    assert (read(LABELS) == LABELS).float().mean() > 0.9


def test_an_answer_that_was_changed_misleads_nobody_who_reads_the_text():
    assert torch.equal(read(LABELS, said=(LABELS + 1) % CLASSES), read(LABELS))


def test_labels_that_have_nothing_to_do_with_the_texts_tell_nothing():
    known = torch.arange(8 * CLASSES) // CLASSES % CLASSES
    right = (read(LABELS, known=known) == LABELS).float().mean()
    assert right < 0.6
