"""Bytes that eager operations read and write."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of what each operation reads and writes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: int = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        # A view moves nothing: its result lies in the memory of its argument. Neither does an
        # operation that only reserves memory.
        places = {tensor.untyped_storage().data_ptr() for tensor in read}
        view = not func._schema.is_mutable and any(
            tensor.untyped_storage().data_ptr() in places for tensor in written
        )
        if not view and "empty" not in func._schema.name:
            self.bytes += sum(map(_size, read + written))
        return result


def _size(tensor: Tensor) -> int:
    """Bytes of a tensor; one that repeats its elements (`expand`) has fewer than it seems."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def traffic(call: Callable[[], object]) -> int:
    """Bytes that the operations of a call read and write, if each argument comes from memory.

    Caches make the real traffic smaller. A compiled call fuses operations and cannot be counted.
    """
    counter = _Traffic()
    with counter:
        call()
    return counter.bytes
