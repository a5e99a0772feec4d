"""Bytes that a piece of work allocates, counted as its operations make tensors and let them go."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocated(TorchDispatchMode):
    """Counts the storages that operations make within, for as long as they live. What was there before counts nothing.

    It sees what PyTorch's allocator would be asked for, with tensors that have no memory too: not the rounding and the
    splitting of a GPU's allocator, nor what libraries take for themselves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.peak = 0, 0
        self._living: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self,
        operation: Callable,
        types: Sequence[type],
        args: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do what was asked, and look at what it made."""
        options = options or {}
        for tensor in _tensors((args, options)):
            self._see(tensor, new=False)
        made = operation(*args, **options)
        for tensor in _tensors(made):
            self._see(tensor, new=True)
        return made

    def _see(self, tensor: Tensor, *, new: bool) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes() if new else 0
        if key in self._living:
            return

        def gone(_: object) -> None:
            self._living.pop(key, None)
            self.bytes -= size

        self._living[key] = weakref.ref(storage, gone)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
