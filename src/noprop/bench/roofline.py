"""How many operations and bytes a piece of work takes, counted while it runs.

Operations are those of matrix products and convolutions, two for each multiply-add: the rest of a
step is passes over memory. Bytes are what every tensor operation reads and writes, as if no cache
kept anything between two of them; views move none.
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
    """What was counted.

    Attributes:
        operations: of products and convolutions.
        bytes: read and written by all tensor operations.
    """

    operations: int
    bytes: int

    def bound(self, operations_per_second: float, bytes_per_second: float) -> float:
        """Seconds by the products, or by memory if that is longer.

        The first nothing can beat. The second a cache can, for the bytes are counted without one.
        """
        return max(self.operations / operations_per_second, self.bytes / bytes_per_second)


def count(work: Callable[[], Any]) -> Work:
    """Run a piece of work and count it; in this thread alone."""
    with _Counter() as counter:
        work()
    return Work(counter.operations, counter.bytes)


# Of what they are called on they read nothing.
_WRITE_ONLY = {"copy_", "fill_", "zero_", "random_", "normal_", "uniform_", "bernoulli_"}


class _Counter(TorchDispatchMode):
    """Adds up the operations, and what each that is no view reads and writes."""

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
            # A fused optimizer may change the gradients, says its schema: it does to unscale them.
            if changed and argument.name != "grads":
                written |= tensors
                if argument.kwarg_only or (i == 0 and name in _WRITE_ONLY):
                    continue
            read |= tensors
        made = {id(t): t for t in tree_leaves(out) if isinstance(t, Tensor)}
        moved = (*read.values(), *(written | made).values())
        self.bytes += sum(t.numel() * t.element_size() for t in moved)
        return out
