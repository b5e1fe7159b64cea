"""Early stopping of a group: it ends when its validation loss has not fallen for some epochs.

A group is judged after every epoch. A single unit is judged by its own loss on the validation part.
Units that are trained together stop together: where they share W_Embed, by the sum of Eq. 8 over
them; in a stack by the loss of its last unit, which is the cross-entropy of a prediction.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

__all__ = ["Patience"]


@dataclass
class Patience:
    """The best epoch of a group until now.

    Attributes:
        limit: Epochs without improvement after which the group stops; 0: it never does.
        loss: The least validation loss, in nats.
        best: Number of its epoch, from 1; 0 before the first.
        epoch: Number of the last epoch that was judged.
    """

    limit: int
    loss: float = math.inf
    best: int = 0
    epoch: int = 0

    def improves(self, epoch: int, loss: float) -> bool:
        """Judge an epoch, and return whether it is the best one."""
        self.epoch = epoch
        if not loss < self.loss:
            return False
        self.loss, self.best = loss, epoch
        return True

    @property
    def is_over(self) -> bool:
        """Whether the last epoch was one too many."""
        return self.limit > 0 and self.epoch - self.best >= self.limit

    def numbers(self) -> Float64[Tensor, "3"]:
        """Return what a checkpoint keeps."""
        return torch.tensor([self.loss, self.best, self.epoch], dtype=torch.float64)

    def restore(self, numbers: Tensor) -> None:
        """Take up what :meth:`numbers` returned.

        Raises:
            ValueError: If they are not such numbers.
        """
        self.loss, best, epoch = numbers.tolist()
        self.best, self.epoch = int(best), int(epoch)
