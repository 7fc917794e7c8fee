"""Only summary positions cross, and what comes out is the unsplit model, so masked."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlas_flwr.errors import PlanError
from atlas_flwr.split import SplitModel, SplitPlan, attach_summary, partition
from atlas_flwr.split.summary import Summary, reads_forward_only
from atlas_flwr.trunk import LocalTrunk
from tests.families import build

HEAD, POSITIONS, WIDTH = 2, 3, 32
TEXTS = ([7, 8, 9, 10, 11], [12, 13], [14, 15, 16])
DECODERS = ("llama", "llama-tied", "qwen3", "gpt2", "gpt-neox", "opt")
BLOCKS = {
    "llama": "model.layers",
    "llama-tied": "model.layers",
    "qwen3": "model.layers",
    "gpt2": "transformer.h",
    "gpt-neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "bert": "bert.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
}
ROTARY = {
    "llama": "model",
    "llama-tied": "model",
    "qwen3": "model",
    "gpt-neox": "gpt_neox",
}


def embeddings() -> Tensor:
    return torch.randn(1 + POSITIONS, WIDTH, generator=torch.Generator().manual_seed(3))


@dataclass
class Listening(LocalTrunk):
    """A trunk that remembers what crossed."""

    calls: list = field(default_factory=list)

    def forward(self, call):
        self.calls.append(call)
        return super().forward(call)

    def loss(self, call, labels, logits_to_keep=0):
        self.calls.append(call)
        return super().loss(call, labels, logits_to_keep)


def the_model(family):
    torch.manual_seed(7)
    return build(family)


def split(family, tail=1):
    parts = partition(the_model(family), SplitPlan(HEAD, tail))
    trunk = Listening(parts.trunk.requires_grad_(False))
    return SplitModel(parts.head, parts.tail, trunk).eval()


def padded(side):
    longest = max(map(len, TEXTS))
    ids = torch.zeros(len(TEXTS), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(TEXTS):
        at = slice(longest - len(text), None) if side == "left" else slice(len(text))
        ids[row, at] = torch.tensor(text)
        mask[row, at] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def unsplit(family, learned, text):
    """One text through the whole model, block by block, masked from the cut on.

    Nothing here knows of parts, of crossings or of Summary: the text stays in the row,
    its columns are closed to all from block HEAD on, and positions begin anew there.
    """
    whole = the_model(family)
    causal = family in DECODERS
    embedded = whole.get_input_embeddings()(torch.tensor([text]))
    row = [learned[:1], embedded[0], learned[1:]] if causal else [learned, embedded[0]]
    hidden = torch.cat(row)[None]
    length = hidden.shape[1]
    crosses = torch.ones(length, dtype=torch.bool)
    crosses[slice(1, 1 + len(text)) if causal else slice(1 + POSITIONS, None)] = False
    allowed = crosses.expand(length, length).clone()
    if causal:
        allowed &= torch.ones(length, length).tril().bool()
    allowed |= torch.eye(length, dtype=torch.bool)  # rows of the text: anything finite
    mask = torch.zeros(1, 1, length, length).masked_fill(~allowed, -1e30)
    anew = (crosses.cumsum(0) - 1)[None]
    blocks = whole.get_submodule(BLOCKS[family])

    def closed(module, args, kwargs):
        kwargs = dict(kwargs)
        at = [*inspect.signature(module.forward).parameters].index("attention_mask")
        if len(args) > at:
            args = (*args[:at], mask, *args[at + 1 :])
        else:
            kwargs["attention_mask"] = mask
        if "position_embeddings" in kwargs:
            rotary = whole.get_submodule(ROTARY[family]).rotary_emb
            kwargs["position_embeddings"] = rotary(args[0], anew)
        return args, kwargs

    hooks = [
        block.register_forward_pre_hook(closed, with_kwargs=True)
        for block in list(blocks)[HEAD:]
    ]
    try:
        return whole(inputs_embeds=hidden).logits
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("tail", [1, None])
def test_a_decoder_s_answer_is_the_unsplit_model_s_so_masked(family, tail):
    learned = embeddings()
    inputs = padded("left")
    if family == "opt":
        del inputs["position_ids"]  # it makes its own, of the mask
    model = split(family, tail)
    with attach_summary(model, learned), torch.no_grad():
        got = model(**inputs).logits[:, -1]
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            expected = unsplit(family, learned, text)[0, -1]
        torch.testing.assert_close(got[row], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("tail", [1, None])
def test_an_encoder_s_answer_is_the_unsplit_model_s_so_masked(family, tail):
    learned = embeddings()
    inputs = padded("right")
    del inputs["position_ids"]
    model = split(family, tail)
    with attach_summary(model, learned), torch.no_grad():
        got = model(**inputs).logits
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            expected = unsplit(family, learned, text)[0]
        torch.testing.assert_close(got[row], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("tail", [1, None])
def test_the_gradient_of_the_learned_positions_is_the_unsplit_model_s(tail):
    learned, targets = embeddings(), torch.tensor([4, 5, 6])
    model, inputs = split("llama", tail), padded("left")
    labels = torch.full((len(TEXTS), inputs["input_ids"].shape[1] + 1), -100)
    labels[:, -1] = targets
    with attach_summary(model, learned) as summary:
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        got = summary.embeddings.grad
    reference = learned.clone().requires_grad_()
    rows = [unsplit("llama", reference, text)[0, -1] for text in TEXTS]
    expected = F.cross_entropy(torch.stack(rows), targets)
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(got, reference.grad, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("tail", [1, None])
@pytest.mark.parametrize("length", [1, POSITIONS, POSITIONS + 1, POSITIONS + 2])
def test_texts_of_fewer_tokens_than_there_are_positions_are_learned_from(length, tail):
    texts, targets = [[7, 8, 9, 10, 11][:length], [12, 13, 14, 15, 16][:length]], [4, 5]
    labels = torch.full((2, length + 1), -100)
    labels[:, -1] = torch.tensor(targets)
    model, learned = split("llama", tail), embeddings()
    ids = torch.tensor(texts)
    with attach_summary(model, learned), torch.no_grad():
        losses = [
            model(input_ids=ids, labels=labels, **kept).loss
            for kept in ({}, {"logits_to_keep": 1})
        ]
        rows = [unsplit("llama", learned, text)[0, -1] for text in texts]
    expected = F.cross_entropy(torch.stack(rows), torch.tensor(targets))
    for loss in losses:
        torch.testing.assert_close(loss, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("tail", [1, None])
def test_nothing_that_crosses_tells_a_text_s_length(tail):
    model, inputs = split("llama", tail), padded("left")
    with attach_summary(model, embeddings()), torch.no_grad():
        model(**inputs)
    (call,) = model.trunk.calls
    assert call.hidden.shape == (len(TEXTS), 1 + POSITIONS, WIDTH)
    assert call.attention_mask is None
    assert call.position_ids is None


def test_the_first_position_of_a_decoder_is_the_same_for_every_text():
    model, inputs = split("llama"), padded("left")
    with attach_summary(model, embeddings()), torch.no_grad():
        model(**inputs)
    first = model.trunk.calls[0].hidden[:, 0]
    torch.testing.assert_close(first, first[:1].expand_as(first))
    others = model.trunk.calls[0].hidden[:, 1:]
    assert (others[0] - others[1]).abs().max() > 1e-2


def test_a_model_is_itself_again_afterwards():
    model, inputs = split("llama"), padded("left")
    before = model(**inputs).logits
    with attach_summary(model, embeddings()):
        pass
    torch.testing.assert_close(model(**inputs).logits, before, atol=0, rtol=0)
    assert "summary" not in dict(model.named_children())


def test_text_is_not_generated_from_a_summary():
    model = split("llama")
    with attach_summary(model, embeddings()), pytest.raises(TypeError, match="=0"):
        model.generate(torch.tensor([[1, 2]]))


def test_embeddings_of_another_width_or_number_are_refused():
    model = split("llama")
    with (
        pytest.raises(PlanError, match="32 numbers"),
        attach_summary(model, torch.zeros(3, WIDTH + 1)),
    ):
        pass
    with pytest.raises(PlanError, match="at least one"):
        Summary(torch.zeros(1, WIDTH), causal=True)


def test_attention_tells_whether_it_is_causal():
    assert reads_forward_only(build("llama"))
    assert not reads_forward_only(build("bert"))
    with pytest.raises(PlanError, match="summary-positions=0"):
        reads_forward_only(nn.Linear(2, 2))
