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
        """Seconds that it takes at least: by the products, or by memory if that is longer."""
        return max(self.operations / operations_per_second, self.bytes / bytes_per_second)


def count(work: Callable[[], Any]) -> Work:
    """Run a piece of work and count it; in this thread alone."""
    with _Counter() as counter:
        work()
    return Work(counter.operations, counter.bytes)


class _Counter(TorchDispatchMode):
    """Adds up the operations, and the bytes of the inputs and outputs of all that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.is_view or func._schema.name.startswith("aten::empty"):
            return out
        if formula := flop_registry.get(func._overloadpacket):
            self.operations += formula(*args, **kwargs, out_val=out)
        # What an operation changes in place is both read and written.
        given = {id(t): t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.bytes += sum(t.numel() * t.element_size() for t in (*given.values(), *made))
        return out
