"""Envelopes: what was put in comes out, and nothing else does harm."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from atlas_flwr.errors import AtlasError, SessionError, TrunkBusy, WireError
from atlas_flwr.split import SplitPlan, partition
from atlas_flwr.trunk import FrameService, Request, SessionSpec, TrunkEngine
from atlas_flwr.trunk.transports.envelope import (
    LONGEST_WAIT,
    VERSION,
    answered,
    opened_answer,
    opened_request,
    sealed,
    sealed_request,
)
from atlas_flwr.trunk.transports.owner_requests import Served
from atlas_flwr.trunk.transports.ownership import OwnerService
from atlas_flwr.trunk.transports.requests import Verb
from atlas_flwr.types import Role
from atlas_flwr.wire.codecs import codec_named
from atlas_flwr.wire.messages import decode_tensors, encode_tensors
from tests.families import build

PLAN = SplitPlan(1, 1)
requests = st.builds(
    Request,
    verb=st.sampled_from(Verb),
    token=st.text(max_size=40),
    codec=st.text(max_size=10),
    frame=st.binary(max_size=200),
    step=st.none() | st.integers(0, 2**40),
    logits_to_keep=st.integers(0, 99),
    ticket=st.text(max_size=20),
    patience=st.floats(0, 1e8),
)


@pytest.fixture(scope="module")
def service():
    return FrameService(TrunkEngine(partition(build("llama"), PLAN).trunk))


@given(requests)
def test_a_request_comes_out_as_it_was_put_in(request_):
    assert opened_request(sealed_request(request_)) == request_


@pytest.mark.parametrize("patience", [1e10, float("inf")])
def test_who_waits_for_ever_is_answered_too(patience):
    asked = Request(Verb.FORWARD, "t", "raw", b"", patience=patience)
    assert opened_request(sealed_request(asked)).patience == LONGEST_WAIT


@given(requests, st.data())
def test_one_changed_byte_is_found(request_, data):
    envelope = bytearray(sealed_request(request_))
    place = data.draw(st.integers(0, len(envelope) - 1))
    if place in (6, 7):  # reserved
        return
    envelope[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WireError):
        opened_request(bytes(envelope))


@given(st.binary(max_size=300))
def test_bytes_that_are_no_envelope_are_answered_by_an_error(service, noise):
    for envelope in (noise, b"ATLS" + noise, sealed_request(broken(noise))):
        with pytest.raises((WireError, SessionError)):
            opened_answer(answered(service, envelope))


def broken(noise: bytes) -> Request:
    return Request(Verb.FORWARD, "nobody's", "raw", noise)


def test_another_version_is_refused_with_both_named():
    envelope = bytearray(sealed_request(broken(b"")))
    struct.pack_into("<H", envelope, 4, VERSION + 1)
    said = f"version {VERSION + 1} .* this trunk version {VERSION}: install the same"
    with pytest.raises(WireError, match=said):
        opened_request(bytes(envelope))


@pytest.mark.parametrize(
    "head",
    [
        {"verb": "adapters"},
        {"token": 5},
        {"codec": None},
        {"step": -1},
        {"step": True},
        {"keep": "all"},
        {"ticket": 7},
        {"wait": -1},
        {"wait": float("nan")},
    ],
)
def test_a_head_that_asks_for_something_else_is_refused(head):
    whole = {"verb": "forward", "token": "t", "codec": "raw", "step": 0, "keep": 0}
    with pytest.raises(WireError):
        opened_request(sealed({**whole, **head}, b""))


# Any text that JSON can write, halves of characters among it.
texts = st.text(st.characters(codec=None), max_size=8)
values = st.none() | st.booleans() | st.floats() | st.integers() | texts
values = values | st.lists(values, max_size=2) | st.dictionaries(texts, values)
heads = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("verb", "token", "codec", "step", "keep", "secret", "run"), values
    ),
)


@given(heads, st.sampled_from([None, *Verb]))
@example({"secret": "\ud800"}, None)
@example({"token": "\ud800"}, Verb.FORWARD)
def test_a_head_of_any_values_is_answered_by_an_error(service, head, verb):
    head = head if verb is None else {"codec": "raw", **head, "verb": str(verb)}
    owner = OwnerService(
        service.engine, "s" * 32, Served("", "", "1/1", 4, 32, 0, "float32", "")
    )
    for answer in (
        answered(service, sealed(head, b"")),
        owner.answer(sealed(head, b"")),
    ):
        with pytest.raises(AtlasError):
            opened_answer(answer)


def test_an_answer_is_the_services_own(service):
    codec, hidden = codec_named("raw"), torch.randn(2, 3, 32)
    token = service.engine.open(SessionSpec(PLAN))
    frame = encode_tensors(codec, {"hidden": (hidden, Role.ACTIVATION)})
    request = Request(Verb.FORWARD, token, "raw", frame)
    found = opened_answer(answered(service, sealed_request(request)))
    wanted = decode_tensors(codec, service.answer(request))["hidden"]
    assert torch.equal(decode_tensors(codec, found)["hidden"], wanted)


def test_an_error_comes_through_as_itself():
    class Full:
        def answer(self, request):
            raise TrunkBusy("three waiting already")

    with pytest.raises(TrunkBusy, match="three waiting already"):
        opened_answer(answered(Full(), sealed_request(broken(b""))))
