"""Text that is written over the cut: the unsplit model's, one position a token."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.trunk import (
    EngineTrunk,
    Limits,
    LocalTrunk,
    SessionSpec,
    TrunkEngine,
    connect,
    serve_local,
)
from atlas_flwr.types import TrunkClient
from atlas_flwr.wire.frames import unpack
from tests.families import build
from tests.stand_in_gpu import DEVICE, stand_in_gpu

U, VANILLA = SplitPlan(1, 1), SplitPlan(2, None)
MODES = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampled": {"do_sample": True, "top_k": 0},
}
TOKENS = 7


def gemma2():
    config = hf.Gemma2Config(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        pad_token_id=0,
    )
    return hf.Gemma2ForCausalLM(config).eval()


def mamba():
    config = hf.MambaConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=5, state_size=8, pad_token_id=0
    )
    return hf.MambaForCausalLM(config).eval()


def phi3():
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config = hf.Phi3Config(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        original_max_position_embeddings=9,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "original_max_position_embeddings": 9,
            **factors,
        },
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return hf.Phi3ForCausalLM(config).eval()


OTHERS = {"gemma2": gemma2, "mamba": mamba, "phi3": phi3}


def made(family):
    torch.manual_seed(0)
    return OTHERS.get(family, lambda: build(family))()


def framed(model, plan, limits=None, **options):
    """Split a model, with its trunk behind frames; return the engine, too."""
    parts = partition(model, plan)
    engine = TrunkEngine(parts.trunk, limits=limits)
    with serve_local("generation", engine) as address:
        token = engine.open(SessionSpec(plan))
        trunk = connect(address, token=token, **options)
    return SplitModel(parts.head, parts.tail, trunk).eval(), engine


def prompts(rows=2, length=6):
    torch.manual_seed(1)
    ids = torch.randint(3, 61, (rows, length))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return ids.masked_fill(mask == 0, 0), mask


def written(model, ids, mask, **settings):
    torch.manual_seed(2)
    preset = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "pad_token_id": 0}
    preset["use_cache"] = True  # MPT's own configuration says no
    return model.generate(ids, attention_mask=mask, **{**preset, **settings})


def sent(trunk):
    """Record what each request holds: shapes and bytes of its tensors by name."""
    requests, exchange = [], trunk.exchange

    def watched(request):
        entries = [entry for entry, _ in unpack(request.frame)]
        requests.append({e.name: (e.shape, e.nbytes) for e in entries})
        return exchange(request)

    trunk.exchange = watched
    return requests


@pytest.mark.parametrize(
    ("family", "plan"),
    [
        *((f, U) for f in ("llama", "qwen3", "mistral", "gemma2", "gemma3")),
        *((f, U) for f in ("gpt2", "opt", "bloom", "mpt")),
        *((f, VANILLA) for f in ("llama", "gemma3", "gpt2", "opt")),
    ],
    ids=str,
)
def test_text_of_a_ragged_batch_is_the_unsplit_models_to_the_token(family, plan):
    model, (ids, mask) = made(family), prompts()
    split, engine = framed(model, plan)
    # Tied random models say the last word again and again: look at the logits, too.
    whole = {"output_logits": True, "return_dict_in_generate": True}
    for mode in MODES.values():
        expected, got = (written(m, ids, mask, **whole, **mode) for m in (model, split))
        assert torch.equal(got.sequences, expected.sequences), mode
        torch.testing.assert_close(
            torch.stack(got.logits), torch.stack(expected.logits)
        )
    assert split.keeps_cache
    assert engine.stats().base_passes == len(MODES) * TOKENS


@pytest.mark.parametrize("mode", MODES)
def test_a_text_that_becomes_long_on_the_way_is_turned_as_one(mode):
    model, (ids, mask) = made("phi3"), prompts()
    split, _ = framed(model, U)
    requests = sent(split.trunk)
    expected = written(model, ids, mask, max_new_tokens=10, **MODES[mode])
    got = written(split, ids, mask, max_new_tokens=10, **MODES[mode])
    assert torch.equal(got, expected)
    lengths = [r["hidden"][0][1] for r in requests if "hidden" in r]
    assert lengths == [6, 1, 1, 1, 10, 1, 1, 1, 1, 1]


def test_a_setting_for_caches_of_another_kind_is_not_read():
    model, (ids, mask) = made("llama"), prompts()
    split, _ = framed(model, U)
    split.generation_config.cache_implementation = "static"
    assert torch.equal(written(split, ids, mask), written(model, ids, mask))


@pytest.mark.parametrize("plan", [U, VANILLA], ids=str)
def test_a_trunk_without_frames_writes_the_same_text(plan):
    model, (ids, mask) = made("gemma3"), prompts()
    beams = MODES["beams"]
    expected = written(model, ids, mask, **beams)
    parts = partition(model, plan)
    engine = TrunkEngine(partition(model, plan).trunk)
    direct = EngineTrunk(engine, engine.open(SessionSpec(plan)))
    for trunk in (LocalTrunk(parts.trunk), direct):
        split = SplitModel(parts.head, parts.tail, trunk).eval()
        assert torch.equal(written(split, ids, mask, **beams), expected)


@pytest.mark.parametrize(("client", "plan"), [("cpu", U), (DEVICE, VANILLA)], ids=str)
def test_client_and_trunk_may_be_on_unlike_devices(client, plan):
    model, (ids, mask) = made("gemma3"), prompts()
    expected = written(model, ids, mask, **MODES["beams"])
    with stand_in_gpu():
        parts = partition(model, plan)
        engine = TrunkEngine(parts.trunk.to("cpu" if client == DEVICE else DEVICE))
        for part in filter(None, (parts.head, parts.tail)):
            part.to(client)
        direct = EngineTrunk(engine, engine.open(SessionSpec(plan)))
        split = SplitModel(parts.head, parts.tail, direct).eval()
        got = written(split, ids.to(client), mask.to(client), **MODES["beams"]).cpu()
        assert torch.equal(got, expected)


def test_after_the_prompt_one_position_a_text_crosses():
    (ids, mask), width = prompts(), 32
    split, _ = framed(made("llama"), U)
    requests = sent(split.trunk)
    written(split, ids, mask)
    first, *steps, last = requests
    assert first["hidden"] == ((2, 6, width), 2 * 6 * width * 4)
    place = ((2,), 8)
    step = {"hidden": ((2, 1, width), 2 * width * 4), "place": place}
    assert steps == [step] * (TOKENS - 1)
    assert last == {"place": place}  # and the trunk forgets the texts


def test_of_beams_that_move_their_rows_cross_and_no_cache():
    ids, mask = prompts()
    split, _ = framed(made("llama"), U)
    requests = sent(split.trunk)
    written(split, ids, mask, **MODES["beams"])
    orders = [r["order"] for r in requests if "order" in r]
    assert orders == [((6,), 24)] * len(orders)
    assert orders
    assert all(set(r) <= {"hidden", "place", "order"} for r in requests[1:])


def test_the_byte_account_is_what_crossed():
    ids, mask = prompts()
    split, engine = framed(made("llama"), U)
    frames, exchange = [], split.trunk.exchange

    def watched(request):
        frames.append((len(request.frame), len(answer := exchange(request))))
        return answer

    split.trunk.exchange = watched
    written(split, ids, mask)
    up, down = (sum(sizes) for sizes in zip(*frames, strict=True))
    assert (split.trunk.meter.total_up, split.trunk.meter.total_down) == (up, down)
    assert (engine.stats().bytes_in, engine.stats().bytes_out) == (up, down)


def test_without_a_cache_the_whole_text_crosses_for_every_token():
    model, (ids, mask) = made("llama"), prompts()
    split, engine = framed(model, U)
    requests = sent(split.trunk)
    got = written(split, ids, mask, use_cache=False)
    assert torch.equal(got, written(model, ids, mask))
    assert [r["hidden"][0][1] for r in requests] == [6 + n for n in range(TOKENS)]
    assert engine.stats().caches == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("plan", [U, VANILLA], ids=str)
def test_a_cache_that_the_trunk_forgot_is_built_again(plan, mode):
    model, (ids, mask) = made("gemma3"), prompts()
    split, engine = framed(model, plan, Limits(cache_bytes=1))  # forgets at once
    expected = written(model, ids, mask, **MODES[mode])
    assert torch.equal(written(split, ids, mask, **MODES[mode]), expected)
    assert engine.stats().evicted_caches == TOKENS
    assert engine.stats().caches == 0


def test_padding_that_does_not_cross_changes_no_token():
    model, (ids, mask) = made("llama"), prompts()
    for plan in (U, VANILLA):
        split, _ = framed(model, plan, spares_padding=True)
        requests = sent(split.trunk)
        assert torch.equal(written(split, ids, mask), written(model, ids, mask))
        assert requests[0]["hidden"][0] == (10, 32)


def test_a_conversation_goes_on_from_its_cache():
    model = made("llama")
    split, engine = framed(model, U)
    requests, cache = sent(split.trunk), split.new_cache()
    text, whole = prompts(1)[0], prompts(1)[0]
    for turn in range(3):
        if turn:
            said = torch.tensor([[5 + turn, 9]])
            text, whole = (torch.cat([t, said], dim=1) for t in (text, whole))
        text = written(split, text, torch.ones_like(text), past_key_values=cache)
        whole = written(model, whole, torch.ones_like(whole))
    assert torch.equal(text, whole)
    # The answer's last token has not crossed when the next turn comes.
    assert sum(r["hidden"][0][1] for r in requests) == text.shape[1] - 1
    assert engine.stats().caches == 1
    cache.close()
    assert engine.stats().caches == 0


def test_several_texts_of_one_session_are_kept_apart():
    model = made("gpt2")
    split, _ = framed(model, U)
    caches = [split.new_cache() for _ in range(2)]
    texts = [torch.tensor([[7, 8, 9]]), torch.tensor([[10, 11, 12, 13]])]
    expected = [written(model, t, torch.ones_like(t)) for t in texts]
    for _ in range(TOKENS):
        texts = [
            written(
                split,
                text,
                torch.ones_like(text),
                past_key_values=cache,
                max_new_tokens=1,
                min_new_tokens=1,
            )
            for text, cache in zip(texts, caches, strict=True)
        ]
    assert all(map(torch.equal, texts, expected))


def test_a_text_begins_as_embeddings_too():
    model, (ids, mask) = made("llama"), prompts()
    split, _ = framed(model, U)
    given = model.get_input_embeddings()(ids)
    settings = {"attention_mask": mask, "max_new_tokens": 3, "pad_token_id": 0}
    expected = model.generate(inputs_embeds=given, **settings)
    got = split.generate(inputs_embeds=given, **settings)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_family_whose_cache_cannot_be_cut_says_so_and_writes_the_same(mode):
    model, (ids, mask) = made("mamba"), prompts()
    split, engine = framed(model, U)
    expected = written(model, ids, mask, **MODES[mode])
    with pytest.warns(UserWarning, match="mamba keeps no cache that can be cut"):
        got = written(split, ids, mask, **MODES[mode])
    assert torch.equal(got, expected)
    assert engine.stats().caches == 0
    with pytest.raises(TypeError, match="use_cache=False"):
        split.new_cache()


class Forgetful(TrunkClient):
    """A trunk that was written before there were caches."""

    def __init__(self, trunk):
        self.trunk = trunk

    def forward(self, call):
        return self.trunk.forward(call)

    def backward(self, step, grad):
        return self.trunk.backward(step, grad)

    def loss(self, call, labels, logits_to_keep=0):
        return self.trunk.loss(call, labels, logits_to_keep)


def test_a_trunk_that_keeps_no_caches_is_sent_whole_texts():
    model, (ids, mask) = made("llama"), prompts()
    parts = partition(model, U)
    split = SplitModel(parts.head, parts.tail, Forgetful(LocalTrunk(parts.trunk)))
    with pytest.warns(UserWarning, match="Forgetful keeps no caches"):
        got = written(split.eval(), ids, mask)
    assert torch.equal(got, written(model, ids, mask))
    for ask in (lambda: split.trunk.forget(0), lambda: split.trunk.extend(None, None)):
        with pytest.raises(TypeError, match="use_cache=False"):
            ask()


def test_a_cache_of_another_kind_or_a_training_pass_is_refused():
    split, _ = framed(made("llama"), U)
    ids, _ = prompts()
    with pytest.raises(TypeError, match="new_cache"):
        split.generate(ids, past_key_values=hf.DynamicCache())
    with pytest.raises(TypeError, match="not trained on"):
        split(input_ids=ids, past_key_values=split.new_cache())
    with torch.no_grad(), pytest.raises(TypeError, match="not trained on"):
        split(input_ids=ids, labels=ids, past_key_values=split.new_cache())


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "mpt"])
@pytest.mark.parametrize("plan", [U, VANILLA], ids=str)
def test_drafts_save_crossings_and_change_no_token(family, plan):
    model = made(family)
    split, engine = framed(model, plan)
    requests = sent(split.trunk)
    ids = torch.tensor([[7, 8, 9, 10, 7, 8, 9, 11, 7, 8]])
    mask = torch.ones_like(ids)
    drafts = {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2}
    expected = written(model, ids, mask, max_new_tokens=24)
    got = written(split, ids, mask, max_new_tokens=24, **drafts)
    assert torch.equal(got, expected)
    lengths = [r["hidden"][0][1] for r in requests if "hidden" in r]
    assert max(lengths[1:]) > 1
    assert engine.stats().caches == 0


@pytest.mark.parametrize("plan", [U, VANILLA], ids=str)
def test_a_model_that_drafts_the_same_saves_most_crossings(plan):
    model, (ids, mask) = made("gemma3"), prompts(1)
    split, engine = framed(model, plan)
    drafter = made("gemma3")
    drafter.generation_config.num_assistant_tokens_schedule = "constant"
    drafter.generation_config.num_assistant_tokens = 4
    drafter.generation_config.assistant_confidence_threshold = 0.0
    expected = written(model, ids, mask, max_new_tokens=20)
    got = written(split, ids, mask, max_new_tokens=20, assistant_model=drafter)
    assert torch.equal(got, expected)
    assert engine.stats().base_passes == 4  # 20 tokens, of which 4 in 5 are drafts


@pytest.mark.parametrize("limit", [1, 1 << 30])
def test_positions_are_taken_back_on_both_sides(limit):
    model = made("gemma3")
    split, _ = framed(model, U, Limits(cache_bytes=limit))
    ids, drafts = torch.tensor([[5, 6, 7, 8, 9, 10, 11]]), torch.tensor([[3, 4, 5]])
    cache = split.new_cache()
    with torch.no_grad():
        split(input_ids=ids, past_key_values=cache)  # as yet, none is to be expected
        cache.activate_past_recording()
        split(input_ids=drafts, past_key_values=cache)
        cache.crop(-2)
        split(input_ids=drafts, past_key_values=cache)
        cache.crop(-3)
        got = split(input_ids=drafts[:, 1:], past_key_values=cache).logits
        whole = torch.cat([ids, drafts[:, :1], drafts[:, 1:]], dim=1)
        expected = model(input_ids=whole).logits[:, -2:]
    torch.testing.assert_close(got, expected)


def test_rows_are_chosen_and_repeated_on_both_sides():
    model, (ids, mask) = made("llama"), prompts()
    split, _ = framed(model, U)
    caches = [split.new_cache(), hf.DynamicCache(config=model.config)]
    answers = []
    for each, cache in zip((split, model), caches, strict=True):
        with torch.no_grad():
            each(input_ids=ids, attention_mask=mask, past_key_values=cache)
            cache.batch_repeat_interleave(2)
            cache.batch_select_indices(torch.tensor([3, 0, 1]))
            new, seen = torch.tensor([[4], [5], [6]]), mask[[1, 0, 0]]
            answers.append(
                each(
                    input_ids=new,
                    attention_mask=torch.cat([seen, torch.ones(3, 1).long()], dim=1),
                    past_key_values=cache,
                ).logits
            )
    torch.testing.assert_close(*answers)
