# SPDX-License-Identifier: Apache-2.0
"""The bytes of tensors that are alive, followed through a piece of work."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LiveBytes"]


class LiveBytes(TorchDispatchMode):
    """Count what is allocated inside a ``with`` block, and for how long.

    Every storage that an operation returns counts once, from then until nothing refers
    to it: neither Python nor autograd. What was there before does not count, nor do
    buffers inside an operation. Fake tensors count as real ones would.

    Attributes
    ----------
    live : int
        Bytes that are alive now.
    peak : int
        The most that were, since the block began or :meth:`restart`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def restart(self) -> None:
        """Begin a new peak from what is alive now."""
        self.peak = self.live

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Never count the storages of these tensors: an operation may return them."""
        self._known.update(_address(tensor) for tensor in tensors)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and count what it returns."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        self.peak = max(self.peak, self.live)
        return out

    def _count(self, tensor: Tensor) -> None:
        address = _address(tensor)
        if address in self._known:
            return
        self._known.add(address)
        storage = tensor.untyped_storage()
        self.live += storage.nbytes()
        weakref.finalize(storage, self._release, address, storage.nbytes())

    def _release(self, address: int, nbytes: int) -> None:
        self._known.discard(address)
        self.live -= nbytes


def _address(tensor: Tensor) -> int:
    """Tell storages apart; fake ones have no data pointer."""
    return int(tensor.untyped_storage()._cdata)
