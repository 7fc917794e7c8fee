# SPDX-License-Identifier: Apache-2.0
"""The footprint of an architecture: what its training steps keep alive, traced.

A client's step and a trunk's are run on fake tensors, which have shapes but no memory
(torch's ``FakeTensorMode``), at a few batches and lengths; what is alive is followed
operation by operation, and polynomials are fitted. So there is no code for a family,
and it takes a second or two and no memory, however large the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from atlas_flwr.budget.footprint import Footprint, Growth, StepSize
from atlas_flwr.data import Batch
from atlas_flwr.lora import (
    PROMPT_KEY,
    Scaling,
    attach,
    attach_ia3,
    attach_prompt,
    ia3_shapes,
    linear_names,
)
from atlas_flwr.split import SplitModel, SplitPlan, load_parts, part_info
from atlas_flwr.split.anatomy import blocks_name, slice_blocks
from atlas_flwr.split.cut import skeleton
from atlas_flwr.split.passes import run_blocks, takes_positions
from atlas_flwr.train.alignment import StartingPoint
from atlas_flwr.train.allocation_meter import LiveBytes
from atlas_flwr.train.echo import Echo
from atlas_flwr.train.step import Step, task_loss
from atlas_flwr.types import Side

__all__ = ["trace_footprint"]

LEAST_BLOCKS, BLOCKS = 3, 4
LONGEST = 256
ALL_SIDES = (Side.HEAD, Side.TRUNK, Side.TAIL)


@dataclass(frozen=True)
class _Seen:
    """Bytes seen in one client's step or one trunk's, beside weights."""

    block: int
    forward: int
    loss: int
    backward: int
    kept: int


def trace_footprint(
    model: Any,
    targets: Sequence[str],
    dtype: torch.dtype = torch.float32,
    adapter: str = "lora",
    *,
    aligned: bool = False,
) -> Footprint | None:
    """Trace the footprint of a model.

    Parameters
    ----------
    model : PreTrainedModel
        Its structure; weights are not looked at.
    targets : Sequence[str]
        See :func:`atlas_flwr.lora.linear_names`.
    dtype : torch.dtype
        Of the frozen weights.
    adapter : str
        ``"ia3"`` for vectors in the place of factors, whatever the targets;
        ``"prompt"`` for one virtual token, which T counts.
    aligned : bool
        With :meth:`~atlas_flwr.train.alignment.StartingPoint.divergence` in the loss.

    Returns
    -------
    Footprint, optional
        ``None`` for a model of fewer than 3 blocks, too few for a head, trunk and tail.
        The same configuration is traced once in a process.
    """
    described = json.dumps(model.config.to_dict(), sort_keys=True, default=str)
    kinds: tuple[Hashable, ...] = (type(model), type(model.config))  # type: ignore[assignment]
    return _traced(*kinds, described, tuple(targets), dtype, adapter, aligned)


@lru_cache(maxsize=16)
def _traced(
    model_class: Any,
    config_class: Any,
    described: str,
    targets: tuple[str, ...],
    dtype: torch.dtype,
    adapter: str,
    aligned: bool,
) -> Footprint | None:
    small = skeleton(model_class, config_class.from_dict(json.loads(described)))
    name = blocks_name(small)
    count = len(small.get_submodule(name))  # type: ignore[arg-type]
    if count < LEAST_BLOCKS:
        return None
    slice_blocks(small, name, 0, min(count, BLOCKS))
    parts = load_parts(small, SplitPlan(1, 1), sides=ALL_SIDES, dtype=dtype)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for part in (parts.head, parts.trunk, parts.tail):
        part.requires_grad_(False)
        if adapter == "ia3":
            shapes = ia3_shapes(part)
            attach_ia3(part, {n: np.ones(s, np.float32) for n, s in shapes.items()})
        elif adapter == "lora":
            attach(part, dict.fromkeys(linear_names(part, targets), 1), Scaling(1.0))
        _make_fake(part, mode)
    causal = small.get_output_embeddings() is not None
    config = small.config.get_text_config()
    width = int(config.hidden_size)
    longest = min(LONGEST, getattr(config, "max_position_embeddings", LONGEST))
    sizes = list(_sizes(longest // 4, causal))
    clients, starts, trunks = [], [], []
    client = SplitModel(parts.head, parts.tail, Echo())
    table = parts.head.get_input_embeddings()  # wider or narrower than the blocks
    prompt = {PROMPT_KEY: np.zeros((1, table.weight.shape[1]), np.float32)}
    virtual = int(adapter == "prompt")
    with mode, _OneExpert(), attach_prompt(client, prompt if virtual else {}):
        for size in sizes:
            batch = _batch(size, causal, virtual)
            start = StartingPoint.of(client, [batch]) if aligned else None
            clients.append(_client(client, batch, start))
            starts.append(start.answers[0].nbytes if start else 0)
            if size.kept in (0, sizes[0].kept):
                hidden = torch.empty(size.batch, size.length, width, dtype=dtype)
                trunks.append(_trunk(parts.trunk, hidden, causal))
        spared = _spared(parts.trunk, hidden, causal)
    inside = len(_blocks(parts.trunk))
    plain = [StepSize(size.batch, size.length) for size in sizes[: len(trunks)]]
    return Footprint(
        block=_fit(plain, [seen.block for seen in trunks]),
        forward=_fit(sizes, [seen.forward for seen in clients]),
        loss=_fit(sizes, [seen.loss for seen in clients]),
        backward=_fit(sizes, [seen.backward for seen in clients]),
        trunk=_fit(plain, [seen.backward - inside * seen.block for seen in trunks]),
        open=_fit(plain, [seen.kept - inside * seen.block for seen in trunks]),
        hidden=Growth(token=float(width * dtype.itemsize)),
        start=_fit(sizes, starts),
        spared=spared,
    )


def _sizes(short: int, causal: bool) -> Iterator[StepSize]:
    """Yield steps that tell the terms of a growth apart."""
    kept = short // 2 if causal else 0
    yield StepSize(4, short, kept)
    yield StepSize(8, short, kept)
    yield StepSize(8, 2 * short, kept)
    yield StepSize(4, 4 * short, kept)
    if causal:
        yield StepSize(8, short, 2 * kept)


class _OneExpert(TorchFunctionMode):
    """Gives all rows of a layer of experts to one of them.

    Shapes, and what is kept of a frozen layer, are the same; fake tensors have the
    product of rows with their own experts in bfloat16 only.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch._grouped_mm:  # pyright: ignore[reportPrivateImportUsage]
            rows, experts = args[:2]
            return rows @ experts[0]
        return func(*args, **(kwargs or {}))


class _Watch:
    """Follows a step: what the last block keeps, and the peaks around it."""

    def __init__(self, live: LiveBytes) -> None:
        self.live = live
        self.entry = self.exit = 0
        self.peaks: list[int] = []

    def turn(self, *_: Any) -> None:
        """End a phase."""
        self.peaks.append(self.live.peak)
        self.live.restart()

    @contextmanager
    def around(self, block: nn.Module) -> Iterator[None]:
        """Watch a block."""
        before = block.register_forward_pre_hook(self._enter)
        after = block.register_forward_hook(self._leave)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _enter(self, *_: Any) -> None:
        self.entry = self.live.live

    def _leave(self, block: nn.Module, given: Any, out: Any) -> None:
        self.exit = self.live.live
        self.turn()
        first = next(t for t in tree_leaves(out) if isinstance(t, Tensor))
        first.register_hook(self.turn)


def _batch(size: StepSize, causal: bool, virtual: int) -> Batch:
    ids = torch.zeros(size.batch, size.length - virtual, dtype=torch.long)
    mask = torch.ones_like(ids)
    labels = ids if causal else ids[:, 0]
    positions = mask.cumsum(1) if causal else None
    kept = size.kept if causal else 0
    # All of the kept but the last, which has nothing to predict: they cannot be looked
    # for among fake labels.
    places = torch.zeros(2, size.batch * (kept - 1), dtype=torch.long) if kept else None
    return Batch(ids, mask, labels, labels, positions, None, kept, places)


def _client(model: SplitModel, batch: Batch, start: StartingPoint | None) -> _Seen:
    def run() -> Tensor:
        step = Step(model, batch, 0)
        loss = task_loss(step)
        return (loss.plus(start.divergence(step)) if start else loss).total()

    return _watched(model, _blocks(model.tail)[-1], run)


def _trunk(trunk: nn.Module, hidden: Tensor, causal: bool) -> _Seen:
    return _watched(trunk, _blocks(trunk)[-1], _passing(trunk, hidden, causal))


def _passing(trunk: nn.Module, hidden: Tensor, causal: bool) -> Callable[[], Tensor]:
    mask = torch.ones(hidden.shape[:2], dtype=torch.long)
    numbered = causal and takes_positions(trunk)
    positions = mask.cumsum(1) if numbered else None

    def run() -> Tensor:
        leaf = hidden.clone().requires_grad_()
        return run_blocks(
            trunk, inputs_embeds=leaf, attention_mask=mask, position_ids=positions
        )

    return run


def _spared(
    trunk: nn.Module, hidden: Tensor, causal: bool
) -> dict[frozenset[str], float]:
    """Find what a block keeps less if layers with one input are not trained."""
    last: nn.Module = _blocks(trunk)[-1]
    layers = {
        name: last.get_submodule(name)
        for name, layer in last.named_modules()
        if isinstance(layer, LoraLayer)
    }
    run = _passing(trunk, hidden, causal)
    before = _kept(trunk, run)
    found = {}
    for names in _sharing(layers, run):
        own = [p for name in names for p in layers[name].parameters()]
        trained = [p for p in own if p.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        less = before - _kept(trunk, run)
        for parameter in trained:
            parameter.requires_grad_(True)
        found[names] = less / (hidden.shape[0] * hidden.shape[1])
    return found


def _sharing(
    layers: Mapping[str, nn.Module], run: Callable[[], object]
) -> set[frozenset[str]]:
    """Group layers by the tensor that they are given."""
    given: dict[int, set[str]] = {}

    def hook(name: str) -> Callable[..., None]:
        def note(layer: nn.Module, args: Any) -> None:
            given.setdefault(args[0].untyped_storage()._cdata, set()).add(name)

        return note

    hooks = [
        layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()
    ]
    run()
    for handle in hooks:
        handle.remove()
    return {frozenset(names) for names in given.values()}


def _watched(model: nn.Module, last: Any, run: Callable[[], Tensor]) -> _Seen:
    live = _beside_weights(model)
    watch = _Watch(live)
    with live, watch.around(last):
        out = run()
        kept = live.live
        out.backward(torch.ones_like(out))
        watch.turn()
    model.zero_grad()
    forward, loss, backward = watch.peaks
    return _Seen(watch.exit - watch.entry, forward, loss, backward, kept)


def _kept(model: nn.Module, run: Callable[[], Tensor]) -> int:
    """Count what a forward leaves alive; :func:`_watched` without its backward."""
    with _beside_weights(model) as live:
        out = run()
        found: int = live.live
    del out
    return found


def _beside_weights(model: nn.Module) -> LiveBytes:
    live = LiveBytes()
    live.ignore([*model.parameters(), *model.buffers()])
    return live


def _blocks(part: Any) -> Any:
    info = part_info(part)
    return part.get_submodule(info.blocks.removeprefix(info.prefix))


def _make_fake(part: nn.Module, mode: FakeTensorMode) -> None:
    """Replace all tensors by fake ones; those that were one stay one."""
    made: dict[int, Tensor] = {}
    for module in part.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is not None:
                    if id(old) not in made:
                        made[id(old)] = _fake(old, mode)
                    tensors[name] = made[id(old)]  # type: ignore[assignment]


def _fake(old: Tensor, mode: FakeTensorMode) -> Tensor:
    with mode:
        new = torch.empty(old.shape, dtype=old.dtype)
    if not isinstance(old, nn.Parameter):
        return new
    return nn.Parameter(new, requires_grad=old.requires_grad)


def _fit(sizes: Sequence[StepSize], values: Sequence[int]) -> Growth:
    """Fit a growth; the sizes are as many as its terms that they tell apart."""
    terms = np.array([size.terms for size in sizes])
    found, *_ = np.linalg.lstsq(terms, np.array(values, dtype=float), rcond=None)
    return Growth(*map(float, found.round(3)))
