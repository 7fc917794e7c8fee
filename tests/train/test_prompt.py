"""A split model with a prompt trains as PEFT's prompt tuning on the unsplit one."""

from __future__ import annotations

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model

from atlas_flwr.budget import client_memory
from atlas_flwr.cohort.trunk_sessions import TrunkSessions
from atlas_flwr.lora import PROMPT_KEY, AdapterState, attach_prompt
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.train.allocation_meter import LiveBytes
from atlas_flwr.train.step import batch_loss
from tests.families import FAMILIES, batch, build
from tests.train.parity import assert_trained_alike
from tests.train.test_footprint import ALL, KEPT, Echo, outline_of, padded_batch
from tests.train.test_ia3 import PLANS, SPEC, split_run

P = 4


def start(model):
    width = model.get_input_embeddings().weight.shape[1]
    heads = ("classifier.", "score.")
    dense = {n: p.detach() for n, p in model.named_parameters() if n.startswith(heads)}
    dense[PROMPT_KEY] = 0.3 * torch.randn(P, width)
    return AdapterState({}, {key: value.numpy().copy() for key, value in dense.items()})


def pefts_run(model, state, batches):
    """The oracle: unsplit, PEFT's own prompt, one AdamW for all."""
    causal = model.config.num_labels == 2
    kind = "CAUSAL_LM" if causal else "SEQ_CLS"
    made = get_peft_model(
        model, PromptTuningConfig(task_type=kind, num_virtual_tokens=P)
    )
    trained = {PROMPT_KEY: made.prompt_encoder["default"].embedding.weight}
    for key in state.dense.keys() - {PROMPT_KEY}:
        owner, _, last = key.rpartition(".")
        saved = made.base_model.get_submodule(owner).modules_to_save["default"]
        trained[key] = getattr(saved, last)
    for key, value in state.dense.items():
        trained[key].data = torch.from_numpy(value.copy())
    adamw = torch.optim.AdamW(
        trained.values(), lr=SPEC.lr, betas=SPEC.betas, weight_decay=SPEC.weight_decay
    )
    losses = []
    for given in batches:
        loss = made(**given).loss
        loss.backward()
        adamw.step()
        adamw.zero_grad()
        losses.append(loss.detach())
    return losses, trained


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "bert"])
def test_split_training_is_pefts_training(family, plan):
    model = build(family)
    state = start(model)
    batches = [batch(family, "right") for _ in range(5)]
    found = split_run(model, plan, state, batches)
    assert_trained_alike(found, pefts_run(model, state, batches), state)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_prompt_stays_on_the_client(plan):
    model = build("bert")
    sessions = TrunkSessions(None, "", SPEC, lambda name: None, 5)
    state = start(model)
    assert PROMPT_KEY in sessions.on_client(plan, state).dense
    assert PROMPT_KEY not in sessions.on_trunk(plan, state).dense


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompted_clients_step_keeps_alive_what_was_predicted(family):
    architecture = outline_of(family).architecture(ALL, adapter="prompt", virtual=P)
    causal = architecture.vocabulary > 0
    for (head, tail), (rows, length) in (((1, 1), (3, 24)), ((2, 1), (6, 40))):
        parts = partition(build(family), SplitPlan(head, tail))
        for part in (parts.head, parts.tail):
            part.requires_grad_(False)
        model = SplitModel(parts.head, parts.tail, Echo())
        given = padded_batch(rows, length - P, causal)
        prompt = {PROMPT_KEY: start(parts.head).dense[PROMPT_KEY]}
        with attach_prompt(model, prompt), LiveBytes() as live:
            live.ignore([*model.parameters(), *model.buffers()])
            batch_loss(model, given).backward()
        found = client_memory(
            architecture,
            head=head,
            tail=tail,
            rank=0,
            batch=rows,
            length=length,
            logits_to_keep=KEPT,
        )
        assert found.activations + found.logits == pytest.approx(live.peak, rel=0.04)
        trained = 16 * prompt[PROMPT_KEY].size
        assert found.adapters == trained + 12 * architecture.dense_params
