# SPDX-License-Identifier: Apache-2.0
"""The frozen base that all sessions share: its slices, and passes through them."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from atlas_flwr.errors import TrunkError
from atlas_flwr.lora import AdapterState, LoraFactors
from atlas_flwr.split import SplitPlan, part_info, trunk_view
from atlas_flwr.split.passes import end_model, run_blocks, takes_positions
from atlas_flwr.split.slice_cache import SliceCache, keeps_cache
from atlas_flwr.trunk.engine.adapters import (
    ActiveAdapters,
    Adapters,
    SessionAdapters,
    layer_shapes,
    placed,
    wrap,
)
from atlas_flwr.trunk.engine.inference import KeptTexts
from atlas_flwr.trunk.engine.joining_check import last_block, rows_join
from atlas_flwr.trunk.engine.own_parameters import own_dense, own_vectors
from atlas_flwr.trunk.engine.packing import Apart, packing_of, texts_apart
from atlas_flwr.trunk.engine.session import Session
from atlas_flwr.types import TrunkCall
from atlas_flwr.wire.padding import padded, unpadded

__all__ = ["KeptBytes", "SharedBase", "Slice"]

COUNTED = 4096  # shapes whose activations are known


@dataclass(frozen=True)
class Slice:
    """The blocks of one plan, and what a session trains on them.

    Attributes
    ----------
    view : Any
        A model of those blocks.
    factors : Mapping[str, LoraFactors]
        The session's own adapters.
    dense : Mapping[str, nn.Parameter]
        The session's own dense parameters, IA3's vectors among them.
    folded : Mapping[str, LoraFactors]
        Products that the base has for this session, and that nobody trains.
    """

    view: Any
    factors: Mapping[str, LoraFactors]
    dense: Mapping[str, nn.Parameter]
    folded: Mapping[str, LoraFactors]


class SharedBase:
    """A trunk that is never written to once it is made.

    Parameters
    ----------
    trunk : nn.Module
        Made by :func:`atlas_flwr.split.partition`. It is changed: its weights are
        frozen and its linear layers wrapped.
    """

    def __init__(self, trunk: Any) -> None:
        self.info = part_info(trunk)
        self.trunk = trunk.requires_grad_(False)
        self.width = int(trunk.config.get_text_config().hidden_size)
        self.shapes = layer_shapes(trunk)
        self._active = ActiveAdapters()
        wrap(trunk, self._active)
        self._views: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()
        self._counted: dict[tuple[Hashable, ...], int] = {}
        self._storages = frozenset(map(_storage, trunk.parameters()))

    @cached_property
    def lets_rows_join(self) -> bool:
        """Whether rows of several sessions can share a pass: it is tried.

        They can where a text's answer does not depend on those beside it, nor on what
        is filled up behind its mask, and every adapted layer sees all rows in their
        order (those of a mixture of experts may not).
        """
        return rows_join(self)

    @cached_property
    def keeps_apart(self) -> Apart | None:
        """What keeps texts apart that stand in one row, if anything: it is tried."""
        return texts_apart(self)

    @property
    def rounded(self) -> torch.dtype | None:
        """What joined passes multiply LoRA's factors in, if not in their own dtype.

        On a GPU, bfloat16 of the base: as products of float32 they took as long as the
        base itself.
        """
        is_half = (
            self.reference_tensor.is_cuda
            and self.reference_tensor.dtype == torch.bfloat16
        )
        return torch.bfloat16 if is_half else None

    @property
    def reference_tensor(self) -> Tensor:
        """Any of its tensors, for their device and dtype."""
        tensor = next(self.trunk.parameters())
        assert isinstance(tensor, Tensor)
        return tensor

    def slice(self, plan: SplitPlan, state: AdapterState) -> Slice:
        """Make a session's slice; its weights are shared, what it trains is its own.

        Raises
        ------
        PlanError
            If the plan is illegal, or asks for blocks that this trunk does not hold.
        AdapterError
            If an adapter is of no layer of the slice, or a dense array of no parameter.
        """
        plan.check(self.info.num_layers)
        blocks = plan.trunk_range(self.info.num_layers)
        view = self._view(blocks.start, blocks.stop)
        shapes = {
            name: shape
            for name, shape in self.shapes.items()
            if self.info.block_of(name) in blocks
        }
        factors = placed(state.factors, shapes, self.reference_tensor, trained=True)
        folded = placed(state.folded, shapes, self.reference_tensor, trained=False)
        vectors = own_vectors(state.dense, shapes, self.reference_tensor)
        others = {k: v for k, v in state.dense.items() if k not in vectors}
        view, dense = own_dense(view, others)
        # A trunk that ends the model can serve U-shaped plans too, by its base alone.
        blocks_only = view if plan.tail is None else view.base_model
        return Slice(blocks_only, factors, {**dense, **vectors}, folded)

    def placed(self, products: Mapping[str, LoraFactors]) -> dict[str, LoraFactors]:
        """Bring products of this trunk's layers here, to be folded by sessions.

        Raises
        ------
        AdapterError
            If one has another shape than its layer, NaN or infinity.
        """
        mine = {name: f for name, f in products.items() if name in self.shapes}
        return placed(mine, self.shapes, self.reference_tensor, trained=False)

    def received(self, call: TrunkCall, past: int = 0) -> TrunkCall:
        """Bring a call here; its hidden states become a leaf of a new graph.

        Parameters
        ----------
        call : TrunkCall
            As it came.
        past : int
            Positions before its own, which its mask has, too.

        Raises
        ------
        TrunkError
            If a shape is wrong.
        """
        hidden, mask, positions = call.hidden, call.attention_mask, call.position_ids
        if hidden.dim() != 3 or hidden.shape[-1] != self.width:
            raise TrunkError(
                f"hidden states of shape {tuple(hidden.shape)}; this trunk takes "
                f"(B, T, {self.width}): client and trunk run different models"
            )
        texts, new = hidden.shape[:2]
        if not texts or not new:
            raise TrunkError(
                f"hidden states of shape {tuple(hidden.shape)} are of no text: leave "
                "empty batches out"
            )
        wanted = (
            ("attention_mask", mask, past + new),
            ("position_ids", positions, new),
        )
        for name, tensor, width in wanted:
            if tensor is None:
                continue
            rows = len(tensor) if tensor.dim() > 1 else 1  # one may be for all texts
            if tensor.shape[-1] != width or rows not in (1, texts):
                raise TrunkError(
                    f"{name} of shape {tuple(tensor.shape)} beside hidden states of "
                    f"shape {tuple(hidden.shape)}"
                )
        device = self.reference_tensor.device
        return replace(
            call,
            hidden=hidden.to(self.reference_tensor)
            .detach()
            .requires_grad_(call.step is not None),
            attention_mask=None if mask is None else mask.to(device),
            position_ids=None if positions is None else positions.to(device),
        )

    def run(self, session: Session, call: TrunkCall) -> Tensor:
        """Run a session's blocks; return hidden states of shape (B, T, D)."""
        apart = self.keeps_apart if call.padding_unread else None
        found = None if apart is None else packing_of(call)
        with self._in_force(session):
            if apart is None or found is None:
                return run_blocks(
                    session.view, inputs_embeds=call.hidden, **_rest(call)
                )
            packing, real = found
            answer = run_blocks(
                session.view,
                inputs_embeds=packing.packed(unpadded(call.hidden, real)),
                **packing.inputs(apart, call.hidden),
            )
            return padded(packing.unpacked(answer), real)

    def end(
        self, session: Session, call: TrunkCall, labels: Tensor | None, keep: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """End the model; return the loss, if there are labels, and the logits."""
        if labels is not None:
            labels = labels.to(self.reference_tensor.device)
        with self._in_force(session):
            out = end_model(
                session.view,
                call.hidden,
                labels=labels,
                logits_to_keep=keep,
                loss_alone=call.loss_alone,
                **_rest(call),
            )
        if labels is None:
            return None, out["logits"]
        return out["loss"], None if call.loss_alone else out["logits"]

    @cached_property
    def keeps_cache(self) -> bool:
        """Whether its blocks can go on from a cache: it is tried."""
        start, stop = self.info.start, last_block(self)
        if start == stop:  # a model of which the trunk is the last block
            return SliceCache(self.trunk.config, start).is_known
        view = self._view(start, stop).base_model
        return keeps_cache(
            partial(run_blocks, view),
            partial(SliceCache, view.config, start),
            self.reference_tensor,
            self.width,
            takes_positions(view),
        )

    def texts(self, session: Session) -> KeptTexts:
        """Begin texts of a session.

        Raises
        ------
        TrunkError
            If its blocks keep no cache.
        """
        ends = session.spec.plan.tail is None
        writes = not ends or session.view.get_output_embeddings() is not None
        if not self.keeps_cache or not writes:
            raise TrunkError(
                f"the blocks of {type(self.trunk).__name__} keep no cache that can be "
                "cut; generate with use_cache=False"
            )
        start = session.spec.plan.trunk_range(self.info.num_layers).start
        cache = SliceCache(session.view.config, start)
        return KeptTexts(cache, session.learner.updates)

    def extend(
        self, session: Session, hidden: Tensor, keep: int, inputs: Mapping[str, Any]
    ) -> Tensor:
        """Run new positions of texts; return hidden states or, at the end, logits."""
        with self._in_force(session):
            if session.spec.plan.tail is not None:
                answer = run_blocks(session.view, inputs_embeds=hidden, **inputs)
                return answer[:, -keep:]
            ended = end_model(session.view, hidden, logits_to_keep=keep, **inputs)
            logits: Tensor = ended["logits"]
            return logits

    @contextmanager
    def counting(
        self, sessions: Sequence[Session], calls: Sequence[TrunkCall]
    ) -> Iterator[KeptBytes]:
        """Count the activations that a pass keeps for its backward.

        On a GPU it is counted once for calls of the same shapes: asking for each tensor
        takes a tenth of a step's time there.
        """
        key = tuple(map(_footprint, sessions, calls))
        if key in self._counted:
            yield KeptBytes(set(), self._counted[key])
            return
        folded = (t for s in sessions for f in s.folded.values() for t in (f.A, f.B))
        own = (p for s in sessions for p in s.parameters)
        kept = KeptBytes({*self._storages, *map(_storage, chain(own, folded))})
        with torch.autograd.graph.saved_tensors_hooks(kept.count, _unchanged):
            yield kept
        if self.reference_tensor.is_cuda and len(self._counted) < COUNTED:
            self._counted[key] = kept.total

    def _in_force(self, session: Session) -> AbstractContextManager[None]:
        stack = session.factors, session.folded
        return self._active.using(
            SessionAdapters(stack, session.vectors, session.probe)
        )

    def run_joined(
        self, blocks: tuple[int, int], hidden: Tensor, adapters: Adapters, **rest: Any
    ) -> Tensor:
        """Run blocks [start, stop) on rows of several sessions.

        Parameters
        ----------
        blocks : tuple[int, int]
            Counted in the whole model; none of them ends it.
        hidden : Tensor
            Shape (rows, T, D).
        adapters : Adapters
            Those of the sessions.
        **rest : Any
            Mask and positions.
        """
        with self._active.using(adapters):
            return run_blocks(
                self._view(*blocks).base_model, inputs_embeds=hidden, **rest
            )

    def _view(self, start: int, stop: int) -> Any:
        with self._lock:
            if (start, stop) not in self._views:
                self._views[start, stop] = trunk_view(self.trunk, start, stop)
            return self._views[start, stop]


@dataclass
class KeptBytes:
    """Bytes of the tensors that autograd keeps, each storage once.

    Attributes
    ----------
    seen : set[int]
        Addresses of storages that are counted already, or are no activations.
    total : int
        Bytes.
    """

    seen: set[int]
    total: int = 0

    def count(self, tensor: Tensor) -> Tensor:
        """Count a tensor that is being kept; return it."""
        address = _storage(tensor)
        if address not in self.seen:
            self.seen.add(address)
            self.total += tensor.untyped_storage().nbytes()
        return tensor


def _footprint(session: Session, call: TrunkCall) -> Hashable:
    """Return what the memory of a session's pass depends on."""
    held = call.attention_mask is None, call.position_ids is None
    shape = tuple(call.hidden.shape)
    return session.spec.plan, session.learner.layout, len(session.folded), shape, held


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _rest(call: TrunkCall) -> dict[str, Tensor | None]:
    return {"attention_mask": call.attention_mask, "position_ids": call.position_ids}
