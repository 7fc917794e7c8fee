from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from atlas_flwr.lora import Scaling, attach, linear_names
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.trunk import LocalTrunk
from tests.families import batch, build


def split(family, plan=SplitPlan(1, 1)):  # noqa: B008
    model = build(family)
    parts = partition(model, plan)
    made = SplitModel(parts.head, parts.tail, LocalTrunk(parts.trunk))
    return model, parts, made.eval()


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3"])
@pytest.mark.parametrize("plan", [SplitPlan(1, 1), SplitPlan(2, None)], ids=str)
def test_greedy_text_equals_the_unsplit_models(family, plan):
    model, _, made = split(family, plan)
    ids = torch.randint(3, 61, (2, 6))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, attention_mask=mask, **settings)
    got = made.generate(ids, attention_mask=mask, **settings)
    assert torch.equal(expected, got)


def test_kept_logits_and_their_loss_are_the_last_ones_of_all():
    model, _, made = split("llama")
    inputs = batch("llama")
    labels = torch.full_like(inputs["labels"], -100)
    labels[:, -2:] = inputs["labels"][:, -2:]
    expected = model(**{**inputs, "labels": labels})
    got = made(**{**inputs, "labels": labels}, logits_to_keep=3)
    torch.testing.assert_close(got.loss, expected.loss)
    torch.testing.assert_close(got.logits, expected.logits[:, -3:])


def test_the_client_has_no_parameter_of_the_trunk():
    model, _, made = split("llama")
    names = {name for name, _ in made.named_parameters()}
    blocks = sum(".layers." in name for name in names)
    per_block = len(list(model.model.layers[0].named_parameters()))
    assert blocks == 2 * per_block


def test_a_head_without_adapters_still_trains_trunk_and_tail():
    _, parts, made = split("llama")
    for part in (parts.head, parts.trunk, parts.tail):
        part.requires_grad_(False)
    for part in (parts.trunk, parts.tail):
        attach(part, dict.fromkeys(linear_names(part), 2), Scaling(4.0))
    made(**batch("llama")).loss.backward()
    for part in (parts.trunk, parts.tail):
        gradients = [p.grad for n, p in part.named_parameters() if "lora_B" in n]
        assert all(g is not None and g.abs().sum() > 0 for g in gradients)


def train_two_steps(model, folder):
    inputs = [{k: v[i] for k, v in batch("llama").items()} for i in range(3)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=3,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        max_grad_norm=0.0,
    )
    torch.manual_seed(3)
    trainer = Trainer(model=model, args=arguments, train_dataset=inputs)
    return trainer.train().training_loss


def test_the_trainer_trains_a_split_model_as_it_trains_a_whole_one(tmp_path):
    # The trunk is frozen: the Trainer's optimiser sees the client's parameters only.
    torch.manual_seed(0)
    whole, _, made = split("llama")
    whole_again = build("llama")
    whole_again.load_state_dict(whole.state_dict())
    for block in whole_again.model.layers[1:4]:
        block.requires_grad_(False)
    made.head.requires_grad_(True)
    torch.manual_seed(1)
    expected = train_two_steps(whole_again, tmp_path / "whole")
    torch.manual_seed(1)
    got = train_two_steps(made, tmp_path / "split")
    assert got == pytest.approx(expected, rel=1e-5)


def test_an_input_that_the_model_does_not_know_is_an_error():
    _, _, made = split("llama")
    with pytest.raises(TypeError, match="token_type_ids"):
        made(**batch("llama"), token_type_ids=torch.zeros(3, 12, dtype=torch.long))


def arguments(folder, **changes):
    settings = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 3,
        "learning_rate": 1e-2,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "max_grad_norm": 0.0,
    }
    return TrainingArguments(**{**settings, **changes})


def examples(family):
    # Texts of unlike lengths, so that a mean over texts is not one over tokens.
    inputs = batch(family, "right")
    return [{k: v[i] for k, v in inputs.items()} for i in range(3)]


def trained_norm(model):
    return next(
        p for n, p in model.named_parameters() if n.endswith("model.norm.weight")
    )


def test_accumulated_steps_of_the_trainer_equal_those_of_the_whole_model(tmp_path):
    whole, _, made = split("llama")
    whole, texts = copy.deepcopy(whole), examples("llama")
    for model in (whole, made):
        model.requires_grad_(False)
        trained_norm(model).requires_grad_(True)
        Trainer(model=model, args=arguments(tmp_path), train_dataset=texts).train()
    torch.testing.assert_close(trained_norm(made), trained_norm(whole))


@pytest.mark.parametrize("family", ["llama-tied", "gemma3", "bert"])
def test_a_checkpoint_of_the_trainer_holds_the_clients_tensors_and_resumes(
    family, tmp_path
):
    _, _, made = split(family)
    changes = {"save_strategy": "steps", "save_steps": 1}
    trainer = Trainer(
        model=made, args=arguments(tmp_path, **changes), train_dataset=examples(family)
    )
    trainer.train()
    expected = {name: p.detach().clone() for name, p in made.named_parameters()}
    stored = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    assert all(name.startswith(("head.", "tail.")) for name in stored)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(parameter, expected[name], msg=name)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_gradient_checkpointing_changes_no_gradient(family):
    _, _, made = split(family)
    inputs = batch(family, "right")
    gradients = []
    for kept in (True, False):
        if not kept:
            made.gradient_checkpointing_enable({"use_reentrant": False})
            assert made.is_gradient_checkpointing
        made.zero_grad()
        made.train()(**inputs).loss.backward()
        gradients.append({n: p.grad for n, p in made.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_generation_follows_the_models_own_settings(tmp_path):
    model = build("llama")
    model.generation_config.eos_token_id = [5, 7]
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path)
    for source in (model, tmp_path):
        parts = partition(source, SplitPlan(1, 1))
        made = SplitModel(parts.head, parts.tail, LocalTrunk(parts.trunk))
        assert made.generation_config.eos_token_id == [5, 7]
        assert made.generate(torch.tensor([[3, 4]])).shape[1] <= 5


def test_the_configuration_is_the_whole_models():
    model, _, made = split("gemma3")
    assert made.config.layer_types == model.config.layer_types
    assert made.config.num_hidden_layers == 5


def test_what_only_the_trunk_could_show_is_refused():
    _, _, made = split("llama")
    with pytest.raises(TypeError, match="output_hidden_states"):
        made(**batch("llama"), output_hidden_states=True)
