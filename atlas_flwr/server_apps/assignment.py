# SPDX-License-Identifier: Apache-2.0
"""The configured rule of phase 2: ranks by importance, by device, or one for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from atlas_flwr.budget import (
    AdaptedLayer,
    Allocation,
    Architecture,
    Assignment,
    MemoryEstimate,
    Rates,
    Repeated,
    StepTime,
    allocate,
    assign,
    client_memory,
    per_byte,
    step_time,
)
from atlas_flwr.config import RunConfig, format_bytes
from atlas_flwr.config.parsing import parse_cut
from atlas_flwr.data import load_examples, load_task, resolve_model, tokenizer_of
from atlas_flwr.data.collation import collator_of
from atlas_flwr.data.label_counts import usual_labels
from atlas_flwr.errors import BudgetError
from atlas_flwr.protocol.profile import Assigned, Profile
from atlas_flwr.remedies import remembered_steps
from atlas_flwr.split import SplitPlan
from atlas_flwr.train.outline import Outline
from atlas_flwr.types import Role
from atlas_flwr.wire import codec_named, encode_tensors

__all__ = ["DeviceRule"]

FLOAT32 = 4  # bytes; other weights, and what crosses, take half of it


@dataclass(frozen=True)
class DeviceRule:
    """Gives a device its cut and ranks; called by the strategy for each client.

    Attributes
    ----------
    config : RunConfig
        What there is to choose from, and how large a step is.
    architecture : Architecture
        What the memory model knows of the model.
    shapes : Mapping[str, tuple[int, int]]
        (d_out, d_in) of the adapted layers, by name in the whole model.
    places : Mapping[str, tuple[int, str]]
        Their block, and their name in it.
    dtype_bytes : int
        Of a frozen weight.
    logits_to_keep : int
        One more than the labels of an example, on average, in the fullest step of any
        task; for a client that tells of its own steps, one more than theirs.
    """

    config: RunConfig
    architecture: Architecture
    shapes: Mapping[str, tuple[int, int]]
    places: Mapping[str, tuple[int, str]]
    dtype_bytes: int = 4
    logits_to_keep: int = 2

    @classmethod
    def of(
        cls, config: RunConfig, outline: Outline, dtype: torch.dtype = torch.float32
    ) -> DeviceRule:
        """Read a model's structure.

        Raises
        ------
        PlanError
            If the cut that the configuration fixes is impossible for this model.
        """
        for cut in config.fixed_cuts:
            SplitPlan(*cut).check(outline.num_layers)
        shapes = outline.shapes(config.target_list)
        places = {name: outline.place_of(name) for name in shapes}
        architecture = outline.architecture(
            config.target_list,
            dtype,
            config.adapter,
            config.learned_positions,
            aligned=remembered_steps(config) > 0,
        )
        kept = _labels(config) + 1
        return cls(config, architecture, shapes, places, dtype.itemsize, kept)

    def __call__(self, profile: Profile, importance: Mapping[str, float]) -> Assigned:
        """Choose for a client.

        Raises
        ------
        BudgetError
            If its device is too small for anything: with the smallest that works.
        PlanError
            If the cut that it asks for is impossible for this model.
        """
        if self.config.split == "none":
            return Assigned(self.whole_rank(profile.memory))
        if profile.cut not in ("", self.config.cut):
            return self.cut_at(profile.cut)(profile, importance)
        if profile.labels and profile.labels + 1 != self.logits_to_keep:
            own = replace(self, logits_to_keep=profile.labels + 1)
            return own(profile, importance)
        if self._by_layer:
            found = self.allocation(profile.memory, importance)
            return Assigned(found.ranks, SplitPlan(found.head, found.tail))
        one = self.assignment(profile.memory)
        return Assigned(one.rank, SplitPlan(one.head, one.tail))

    def allocation(
        self, memory: int | None, importance: Mapping[str, float]
    ) -> Allocation:
        """Choose a cut and a rank for each layer.

        Without importances all layers have the same, before their size is counted.
        """
        return allocate(
            [AdaptedLayer(n, self.places[n][0], s) for n, s in self.shapes.items()],
            importance or per_byte(dict.fromkeys(self.shapes, 1.0), self.shapes),
            memory,
            self.peak,
            choices=self.config.rank_choices,
            heads=self._heads,
            tail=self._tail,
            num_layers=self.architecture.num_layers,
            trunk_memory=self.config.trunk_session_bytes,
        )

    def cut_at(self, cut: str) -> DeviceRule:
        """Return the rule for devices of this cut, or of one that is chosen (auto).

        Raises
        ------
        PlanError
            If the cut is impossible for this model.
        """
        if cut != "auto":
            SplitPlan(*parse_cut(cut)).check(self.architecture.num_layers)
        return replace(self, config=replace(self.config, cut=cut))

    def planned(self, memory: int | None) -> Allocation | Assignment:
        """Choose as for a client of which nobody knows yet which layers matter."""
        by_layer = self._by_layer
        return self.allocation(memory, {}) if by_layer else self.assignment(memory)

    def problems(self) -> Iterator[str]:
        """Yield each of the configuration's devices that can be given nothing."""
        kinds = () if self.config.split == "none" else self.config.kinds
        for memory, cut in dict.fromkeys(kinds):
            if memory is None:
                continue
            try:
                self.cut_at(cut).planned(memory)
            except BudgetError as error:
                size = format_bytes(memory)
                yield f"devices={self.config.devices!r}: {size} is too little: {error}"

    @property
    def _by_layer(self) -> bool:
        return self.config.adapter == "lora" and self.config.ranks == "budget"

    def assignment(self, memory: int | None) -> Assignment:
        """Choose a cut and one rank for all layers: 0 where it is not LoRA."""
        config = self.config
        ranks = (
            (config.lora_rank,) if config.ranks == "uniform" else config.rank_choices
        )
        return assign(
            self.architecture,
            memory,
            ranks=ranks if config.adapter == "lora" else (0,),
            max_head=config.max_head,
            tail=self._tail,
            batch=config.batch_size,
            length=config.max_length + config.learned_positions,
            crossing=config.crossing_positions,
            fixed_head=config.fixed_cut[0] if config.fixed_cut else None,
            dtype_bytes=self.dtype_bytes,
            logits_to_keep=self.logits_to_keep,
            aligned_steps=remembered_steps(config),
            repeated=self._repeated,
        )

    def whole_rank(self, memory: int | None) -> int:
        """Choose a rank for a client that trains the whole model.

        The larger the device among the federation's, the higher in ``lora-ranks``:
        none of them is asked whether it holds the model.
        """
        config, ranks = self.config, self.config.rank_choices
        if config.adapter != "lora":
            return 0
        if config.ranks == "uniform":
            return config.lora_rank
        sizes = sorted(set(config.device_bytes))
        if memory is None or len(sizes) < 2:
            return ranks[-1]
        place = sum(size <= memory for size in sizes) - 1
        return ranks[max(place, 0) * (len(ranks) - 1) // (len(sizes) - 1)]

    def peak(self, head: int, ranks: Mapping[str, int]) -> MemoryEstimate:
        """Predict a client's peak, at ranks of the layers on its side."""
        config = self.config
        return client_memory(
            self.architecture,
            head=head,
            tail=self._tail,
            ranks={self.places[name]: rank for name, rank in ranks.items()},
            batch=config.batch_size,
            length=config.max_length + config.learned_positions,
            crossing=config.crossing_positions,
            dtype_bytes=self.dtype_bytes,
            logits_to_keep=self.logits_to_keep,
            aligned_steps=remembered_steps(config),
            repeated=self._repeated,
        )

    @property
    def _repeated(self) -> Repeated | None:
        """What a client repeats that checks its host: at the highest rank there is."""
        config = self.config
        if not config.peer_checks:
            return None
        steps = config.local_steps * config.accumulate
        return Repeated(steps, self.highest_rank, config.accumulate)

    @property
    def highest_rank(self) -> int:
        """The highest rank that a client may be given; 0 where it is not LoRA."""
        config = self.config
        if config.adapter != "lora":
            return 0
        uniform = config.ranks == "uniform"
        return config.lora_rank if uniform else max(config.rank_choices)

    @property
    def _tail(self) -> int | None:
        if self.config.fixed_cut:
            return self.config.fixed_cut[1]
        return None if self.config.split == "vanilla" else 1

    def seconds(self, rates: Rates, head: int, tail: int | None) -> StepTime:
        """Model the time of a step of a client with this cut."""
        config = self.config
        return step_time(
            self.architecture,
            rates,
            head=head,
            tail=tail,
            batch=config.batch_size,
            length=config.max_length + config.learned_positions,
            wire_bytes=self._wire_bytes,
            crossing=config.crossing_positions,
        )

    @cached_property
    def _wire_bytes(self) -> float:
        """Bytes of a number as it crosses, by the run's codec."""
        dtype = torch.float32 if self.dtype_bytes == FLOAT32 else torch.bfloat16
        rows = torch.linspace(-1, 1, 1 << 16).to(dtype).view(256, -1)
        codec = codec_named(self.config.recorded_codec)
        frame = encode_tensors(codec, {"hidden": (rows, Role.ACTIVATION)})
        return len(frame) / rows.numel()

    @property
    def plans(self) -> list[SplitPlan]:
        """The cuts that clients may be given."""
        if len(self.config.fixed_cuts) > 1:
            return [SplitPlan(*cut) for cut in dict.fromkeys(self.config.fixed_cuts)]
        return [SplitPlan(head, self._tail) for head in self._heads]

    @property
    def _heads(self) -> range:
        if self.config.fixed_cut:
            head = self.config.fixed_cut[0]
            return range(head, head + 1)
        deepest = self.architecture.num_layers - 1 - (self._tail or 0)
        return range(1, min(self.config.max_head, deepest) + 1)


def _labels(config: RunConfig) -> int:
    """Return the labels of an example, on average, in the fullest step of any task."""
    source = resolve_model(config.model)
    tokenizer = tokenizer_of(source)
    found = []
    for task in map(load_task, config.task_list):
        collate = collator_of(source, tokenizer, task, config.max_length)
        examples = load_examples(task) if task.answers else ()
        given = collate, examples, config.batch_size, config.seed
        found.append(usual_labels(*given))
    return max(found)
