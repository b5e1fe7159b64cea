"""Numbers of operations and bytes of a piece of work, counted while it runs.

Operations are those of matrix products and convolutions, two for each multiply-add; all others are
limited by memory. Bytes are the reads and writes of all tensor operations, as if there were no
cache; views count zero.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["Work", "count"]


@dataclass(frozen=True)
class Work:
    """Operations and bytes of a piece of work.

    Attributes:
        operations: Number of operations of products and convolutions.
        bytes: Number of bytes read and written by all tensor operations.
    """

    operations: int
    bytes: int

    def bound(self, operations_per_second: float, bytes_per_second: float) -> float:
        """Return the time of the products or of memory, whichever is longer, in seconds.

        The first is a strict bound. A cache can beat the second, because bytes are counted as if
        there were none.
        """
        return max(self.operations / operations_per_second, self.bytes / bytes_per_second)


def count(work: Callable[[], Any]) -> Work:
    """Run a piece of work, and count its operations and bytes in this thread."""
    with _Counter() as counter:
        work()
    return Work(counter.operations, counter.bytes)


# Operations that do not read the tensor they are called on.
_WRITE_ONLY = {"copy_", "fill_", "zero_", "random_", "normal_", "uniform_", "bernoulli_"}


class _Counter(TorchDispatchMode):
    """Counter of operations, and of the bytes that they read and write, except views."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if func.is_view or name.startswith(("empty", "new_empty")):
            return out
        if formula := flop_registry.get(func._overloadpacket):
            self.operations += formula(*args, **kwargs, out_val=out)
        read: dict[int, Tensor] = {}
        written: dict[int, Tensor] = {}
        for i, argument in enumerate(func._schema.arguments):
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            tensors = {id(t): t for t in tree_leaves(value) if isinstance(t, Tensor)}
            changed = argument.alias_info is not None and argument.alias_info.is_write
            # The schema of a fused optimizer says that it writes gradients: only to unscale them.
            if changed and argument.name != "grads":
                written |= tensors
                if argument.kwarg_only or (i == 0 and name in _WRITE_ONLY):
                    continue
            read |= tensors
        made = {id(t): t for t in tree_leaves(out) if isinstance(t, Tensor)}
        moved = (*read.values(), *(written | made).values())
        self.bytes += sum(t.numel() * t.element_size() for t in moved)
        return out
