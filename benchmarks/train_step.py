"""Images per second of our training step of one block against the plain loop, in one run.

Both train the DT block of Fig. 5 on made-up 28×28 images with one thread. The plain loop is what
one writes first: float32, the whole image, ReLU before the pool, nn.Dropout, unfused AdamW. Rounds
alternate, so that a busy machine slows both.

    python benchmarks/train_step.py [--rounds 5] [--steps 20]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from noprop.build import Task, build_embedding, build_method, use_bf16
from noprop.config import RunConfig, replace
from noprop.data import Normalization
from noprop.methods.dt import DiscreteNoProp
from noprop.randomness import generator
from noprop.training.loop import make_optimizer

BATCH = 128


def our_step(x: Tensor, y: Tensor) -> Callable[[int], None]:
    """A step as training makes it, with this machine's defaults."""
    config = replace(RunConfig(), {"method.num_blocks": 10})
    task = Task((1, 28, 28), tuple("0123456789"), Normalization((0.13,), (0.31,)))
    method = build_method(config, task, build_embedding(config, task, None), only="block-5")
    assert isinstance(method, DiscreteNoProp)
    unit = method.blocks[0]
    unit.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = make_optimizer(config.train, unit.parameters)
    bf16 = use_bf16("auto", torch.device("cpu"))

    def step(index: int) -> None:
        draws = generator(0, "step", index, unit.name)
        chosen = torch.randint(len(x), (BATCH,), generator=draws)
        images = task.normalization.apply(x[chosen]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = unit.loss(images, y[chosen], draws).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


class PlainBlock(nn.Module):
    """Fig. 5 as it is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2),
            nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Dropout(0.2),
            nn.Conv2d(64, 128, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2),
            nn.Flatten(), nn.Linear(2048, 256), nn.BatchNorm1d(256),
        )  # fmt: skip
        self.first = nn.Sequential(nn.Linear(10, 256), nn.BatchNorm1d(256), nn.ReLU())
        self.rest = nn.Sequential(
            nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 256),
            nn.BatchNorm1d(256),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Linear(512, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 128),
            nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """Logits."""
        h = self.first(z)
        return self.head(torch.cat([self.image(x), h + self.rest(h)], dim=1))


def plain_step(x: Tensor, y: Tensor) -> Callable[[int], None]:
    """The loop one writes first."""
    block = PlainBlock()
    optimizer = torch.optim.AdamW(block.parameters(), lr=1e-3, weight_decay=1e-3)

    def step(index: int) -> None:
        chosen = torch.randint(len(x), (BATCH,))
        images = (x[chosen].float() / 255 - 0.13) / 0.31
        u = nn.functional.one_hot(y[chosen], 10).float()
        z = 0.58 * u + 0.81 * torch.randn_like(u)
        loss = 0.13 * (block(z, images).softmax(1) - u).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    """Time both, and print images a second and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (20_000, 1, 28, 28), dtype=torch.uint8, generator=g)
    y = torch.randint(10, (20_000,), generator=g)
    steps = {"ours": our_step(x, y), "plain": plain_step(x, y)}
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(arguments.rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            for index in range(arguments.steps):
                step(index)
            if round_:  # the first warms up
                taken = time.perf_counter() - began
                speeds[name].append(BATCH * arguments.steps / taken)
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["plain"], strict=True)]
    print(json.dumps({
        "images_per_second": {name: round(statistics.median(v)) for name, v in speeds.items()},
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "bf16": use_bf16("auto", torch.device("cpu")),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
