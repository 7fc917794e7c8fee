"""A stand-in for a GPU: tensors that say they are on ``lazy``, and compute on the CPU.

PyTorch's builds for the CPU refuse ``cuda`` before anything can stand in for it; of
``lazy`` they know the name, and nothing more.

As on a real one, an operation on tensors of both devices is an error, except where one
of them is a single number on the CPU; and a tensor has to come to the CPU before numpy
sees it. Nothing of speed or memory is like a GPU's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from atlas_flwr.train import footprint

DEVICE = torch.device("lazy")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class OnGpu(Tensor):
    """A tensor on the stand-in; ``inner`` has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnGpu:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )
        made.inner = inner
        return made

    def __init__(self, inner: Tensor) -> None:
        pass

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGpu({self.inner!r})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Constants(TorchFunctionMode):
    """``torch.tensor`` makes its tensor where no other mode sees it."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is not torch.tensor or given.get("device") is None:
            return func(*args, **given)
        device = given.pop("device")
        return func(*args, **given).to(device)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [*_tensors(args), *_tensors(kwargs.values())]
    here = [tensor for tensor in given if isinstance(tensor, OnGpu)]
    asked = kwargs.get("device")
    target = None if asked is None else torch.device(asked).type
    if here and func not in COPIES:
        strays = [t for t in given if not isinstance(t, OnGpu) and t.dim()]
        if strays:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two "
                f"devices, {DEVICE} and cpu! ({func})"
            )
    if func is torch.ops.aten.copy_.default:
        _inner(args[0]).copy_(_inner(args[1]))
        return args[0]
    if target == DEVICE.type:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    out = func(*map(_inner, args), **{k: _inner(v) for k, v in kwargs.items()})
    if target == "cpu" or (not here and target != DEVICE.type):
        return out
    return _outer(out, {id(tensor.inner): tensor for tensor in here})


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _inner(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_inner, value))
    return value.inner if isinstance(value, OnGpu) else value


def _outer(value: Any, known: Mapping[int, OnGpu]) -> Any:
    """Wrap results; what was changed in place stays the tensor that it was."""
    if isinstance(value, list | tuple):
        return type(value)(_outer(item, known) for item in value)
    if isinstance(value, Tensor) and not isinstance(value, OnGpu):
        return known[id(value)] if id(value) in known else OnGpu(value)
    return value


@contextmanager
def stand_in_gpu() -> Iterator[None]:
    """Let the device ``lazy`` be the stand-in."""
    try:
        with (
            _Constants(),
            _Mode(),
            sdpa_kernel(SDPBackend.MATH),
        ):  # others ask what device it is
            yield
    finally:
        footprint._traced.cache_clear()  # another kernel keeps other tensors
