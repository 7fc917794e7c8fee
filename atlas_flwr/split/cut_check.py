# SPDX-License-Identifier: Apache-2.0
"""A rehearsal of a cut without weights, which refuses the models that it would break.

Stand-ins take the blocks' places; each adds its own number to the hidden states and
notes what else it was given. A cut is right if hidden states pass untouched to the
first block and from the last, and if each block is given the same (masks, rotary
tables) in a part as in the whole model. Models that scale hidden states before their
blocks, add positions to them, or let blocks share more than hidden states are refused
here, instead of being trained wrongly.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from atlas_flwr.errors import PlanError
from atlas_flwr.split.anatomy import (
    around_blocks,
    bypass_embeddings,
    bypass_norm,
    slice_blocks,
)

__all__ = ["rehearse"]

ROWS, TOKENS = 2, 5


class _WrongCue(Exception):
    """A block was not given hidden states, but what it made of its answer before."""


class _StandIn(nn.Module):
    """Stands for a block; has all its attributes."""

    def __init__(self, block: nn.Module, number: int, as_tuple: bool) -> None:
        super().__init__()
        object.__setattr__(self, "block", block)  # no child: it has no memory to use
        self.number, self.as_tuple = number, as_tuple
        self.entered: Any = None
        self.given: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add the block's number to the hidden states."""
        rest = dict(kwargs)
        hidden = args[0] if args else rest.pop("hidden_states", None)
        if not isinstance(hidden, Tensor) or hidden.dim() != 3:
            raise _WrongCue
        self.entered, self.given = hidden, (args[1:], rest)
        answer = hidden + self.number
        return (answer, None) if self.as_tuple else answer


def rehearse(
    make: Callable[[], PreTrainedModel], blocks: str, slices: Iterable[tuple[int, int]]
) -> None:
    """Check that a model can be cut into these slices.

    Parameters
    ----------
    make : Callable
        Builds the whole model without memory for its parameters.
    blocks : str
        Name of its list of blocks.
    slices : Iterable[tuple[int, int]]
        First block and end of each part.

    Raises
    ------
    PlanError
        If a part would compute something else than the whole model.
    """
    count = len(make().get_submodule(blocks))  # type: ignore[arg-type]
    whole, as_tuple = _whole(make, blocks, count)
    for start, stop in slices:
        part = _perform(make(), blocks, start, stop, as_tuple)
        for block in range(start, stop):
            if not _same(part[block], whole[block]):
                raise _refusal(
                    make(),
                    f"block {block} is given something else in blocks [{start}, {stop})"
                    " alone than in the whole model",
                )


def _whole(
    make: Callable[[], PreTrainedModel], blocks: str, count: int
) -> tuple[dict[int, Any], bool]:
    for as_tuple in (False, True):  # families differ in what a block returns
        try:
            return _perform(make(), blocks, 0, count, as_tuple), as_tuple
        except _WrongCue:
            continue
    raise _refusal(make(), "its blocks are not given hidden states of shape (B, T, D)")


def _perform(
    model: PreTrainedModel, blocks: str, start: int, stop: int, as_tuple: bool
) -> dict[int, Any]:
    """Run the blocks [start, stop); return what each was given beside hidden states."""
    stand_ins = _hollow(model, blocks, as_tuple)
    first, late, early = stand_ins[start], list[str](), list[str]()
    slice_blocks(model, blocks, start, stop)
    bypass_embeddings(model, blocks)
    entries = _stubs(model, blocks)
    _watch(entries, lambda: first.entered is not None, late)
    bypass_norm(model, blocks)
    exits = {n: stub for n, stub in _stubs(model, blocks).items() if n not in entries}
    _watch(exits, lambda: first.entered is None, early)
    _refuse_leftovers(model, blocks)
    hidden = _hidden(model, range(start))
    left = _run(model, hidden)
    if not isinstance(left, Tensor) or left.dim() != 3 or first.entered is None:
        raise _WrongCue
    if late:
        raise _refusal(model, f"{late[0]} comes after its blocks")
    if early:
        raise _refusal(model, f"{early[0]} comes before its blocks, too")
    if not torch.equal(first.entered, hidden):
        raise _refusal(
            model, "it changes hidden states before its first block (scale, positions)"
        )
    if not torch.equal(left, _hidden(model, range(stop))):
        raise _refusal(
            model, "it changes hidden states between or after its blocks (projection)"
        )
    return {block: stand_ins[block].given for block in range(start, stop)}


def _hollow(model: PreTrainedModel, blocks: str, as_tuple: bool) -> list[_StandIn]:
    real: Any = model.get_submodule(blocks)
    made = [_StandIn(block, i + 1, as_tuple) for i, block in enumerate(real)]
    model.set_submodule(blocks, nn.ModuleList(made))
    return made


def _stubs(model: PreTrainedModel, blocks: str) -> dict[str, nn.Module]:
    """Return what stands for embeddings or the final norm."""
    beside = around_blocks(model, blocks)
    return {name: child for _, name, child in beside if isinstance(child, nn.Identity)}


def _watch(
    stubs: Mapping[str, nn.Module], is_wrong: Callable[[], bool], found: list[str]
) -> None:
    """Note which of them are called at the wrong time."""

    def hook(name: str) -> Callable[..., None]:
        return lambda *_: found.append(name) if is_wrong() else None

    for name, stub in stubs.items():
        stub.register_forward_hook(hook(name))


def _refuse_leftovers(model: PreTrainedModel, blocks: str) -> None:
    for _, name, child in around_blocks(model, blocks):
        if any(True for _ in child.parameters()):
            raise _refusal(
                model, f"{name} has weights beside its blocks that belong to no part"
            )


def _hidden(model: PreTrainedModel, passed: Iterable[int]) -> Tensor:
    """Return whole numbers, as they are after these blocks: sums of them are exact."""
    width = model.config.hidden_size
    numbers = torch.arange(ROWS * TOKENS * width) % 7 - 3
    shift = sum(block + 1 for block in passed)
    return numbers.reshape(ROWS, TOKENS, width).float() + shift


@torch.no_grad()
def _run(model: PreTrainedModel, hidden: Tensor) -> Any:
    base: Any = model.base_model
    known = inspect.signature(base.forward).parameters
    mask = torch.ones(ROWS, TOKENS, dtype=torch.long)
    mask[1, :2] = 0
    inputs = {"inputs_embeds": hidden, "attention_mask": mask, "use_cache": False}
    given = {name: value for name, value in inputs.items() if name in known}
    try:
        return getattr(base(**given), "last_hidden_state", None)
    except _WrongCue:
        raise
    except Exception as error:  # whatever a model's own code may raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise _refusal(
            model, f"it does not run on hidden states and a mask alone ({why})"
        ) from error


def _same(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x.shape == y.shape and torch.equal(x, y)
    if isinstance(x, list | tuple) and isinstance(y, list | tuple):
        return len(x) == len(y) and all(map(_same, x, y))
    if isinstance(x, Mapping) and isinstance(y, Mapping):
        return x.keys() == y.keys() and all(_same(x[k], y[k]) for k in x)
    return type(x) is type(y) and (not isinstance(x, bool | int | str) or x == y)


def _refusal(model: PreTrainedModel, why: str) -> PlanError:
    return PlanError(
        f"{type(model).__name__} cannot be cut: {why}; choose a model of another "
        "family, such as Llama, Qwen, GPT-2, BERT"
    )
