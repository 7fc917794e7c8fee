"""A client's round: what is measured of it."""

from __future__ import annotations

from unittest import mock

from flwr.app import ConfigRecord

from atlas_flwr.client_apps import batches, trunk
from atlas_flwr.client_apps.identity import Identity
from atlas_flwr.client_apps.round import ClientRound
from atlas_flwr.config import load_config
from atlas_flwr.lora import Scaling
from atlas_flwr.protocol.layout import write_state
from atlas_flwr.split import SplitPlan
from atlas_flwr.train.echo import Echo
from atlas_flwr.train.initial import initial_state
from atlas_flwr.train.memory import PeakMeter
from atlas_flwr.train.weights import ModelFiles


def test_texts_and_tokenizer_are_read_before_memory_is_measured() -> None:
    keys = {"model": "tiny", "tasks": "spam", "local-steps": 1, "batch-size": 2}
    config, plan = load_config(keys), SplitPlan(1, 1)
    files = ModelFiles.of(config)
    shapes, _ = files.outline().shapes_by_side(config.target_list, plan)
    state = initial_state(
        shapes, rank=2, scaling=Scaling(config.lora_alpha, config.use_rslora), seed=0
    )
    entries = ConfigRecord({"server-round": 1, "plan": str(plan)})
    me = Identity(0, 2, None)
    one = ClientRound(config, me, files, entries, write_state(state))
    read, enter = batches._collator.cache_info, PeakMeter.__enter__
    begun: list[int] = []

    def entered(meter: PeakMeter) -> PeakMeter:
        begun.append(read().misses)
        return enter(meter)

    batches._collator.cache_clear()
    with (
        mock.patch.object(trunk, "connect_all", return_value=Echo()),
        mock.patch.object(PeakMeter, "__enter__", entered),
    ):
        one.train()
    assert begun == [1] == [read().misses]
