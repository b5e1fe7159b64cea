"""Whether torch.compile makes a training step faster: the image path of a block, there and back.

Two ways compute the same loss and gradient from the same weights: ours (eager, with the fused
layers of ``noprop.layers``), and plain layers compiled, with the masks of dropout as inputs. They
take turns, with one thread; the processor's time counts. Ours cannot be compiled as it is: torch
2.13 fails on the bytes of its masks, which are seen through another type.

    python studies/compiling.py                    # the encoders of CIFAR-10's recipes
    python studies/compiling.py --table            # the results so far, as Markdown
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noprop.encoders import conv_bn_path, conv_path
from noprop.layers import ReLUDropout, Sequence, channels_last, keep_mask
from noprop.machine import malloc_keeps_memory, use_bf16
from noprop.randomness import generator
from study import Line, Study, markdown

SIZE, BATCH, ROUNDS, STEPS = (32, 32), 128, 9, 3
ENCODERS = {
    "conv": lambda: conv_path(3, SIZE, 0.2),
    "conv-bn": lambda: conv_bn_path(3, SIZE, 0.05),
}


class Plain(nn.Module):
    """The layers of a path with plain pools and dropout, whose masks are inputs."""

    def __init__(self, path: Sequence):
        super().__init__()
        self.path = path

    def forward(self, x: Tensor, masks: list[Tensor]) -> Tensor:
        """Return the features of x."""
        left = iter(masks)
        for layer in self.path:
            if not isinstance(layer, ReLUDropout):
                x = layer(x)
                continue
            if layer.pool:  # faster than max_pool2d, whose gradient scatters
                x = x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
                x = torch.maximum(x[..., ::2], x[..., 1::2])
                x = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
            x = F.relu(x) * next(left) * (256 / layer.keep_of_256)
        return x


def ways(path: Sequence, x: Tensor, draws: torch.Generator) -> dict[str, Callable[[], Tensor]]:
    """Return both ways to compute the features."""
    shapes: list[tuple[Tensor, int]] = []
    h = x
    for layer in path:
        h = layer(h, draws) if isinstance(layer, ReLUDropout) else layer(h)
        if isinstance(layer, ReLUDropout):
            shapes.append((torch.empty_like(h), layer.keep_of_256))
    plain = torch.compile(Plain(path))
    return {
        "ours": lambda: path(x, draws),
        "plain, compiled": lambda: plain(x, [keep_mask(s, keep, draws) for s, keep in shapes]),
    }


def measure(key: Line) -> Iterator[Line]:
    """Measure the seconds of a step in each way, and those of its first call."""
    torch.set_num_threads(1)
    bf16 = use_bf16("auto", torch.device("cpu"))
    path = ENCODERS[key["encoder"]]()
    path.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    draws = generator(0, "compiling")
    x = channels_last(torch.empty(BATCH, 3, *SIZE).normal_(generator=draws))
    seconds: dict[str, list[float]] = {}
    first: dict[str, float] = {}
    with ExitStack() as stack:
        stack.enter_context(malloc_keeps_memory())
        stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=bf16))
        made = ways(path, x, draws)
        for number in range(ROUNDS + 1):
            for name, features in made.items():
                start, wall = time.process_time(), time.monotonic()
                for _ in range(STEPS):
                    features().float().square().mean().backward()
                if number:
                    seconds.setdefault(name, []).append((time.process_time() - start) / STEPS)
                else:
                    first[name] = time.monotonic() - wall
    speedup = {
        name: median(a / b for a, b in zip(seconds["ours"], times, strict=True))
        for name, times in seconds.items()
    }
    yield {"bf16": bf16, "seconds": seconds, "first": first, "speedup": speedup}


def table(lines: list[Line]) -> str:
    """Return the milliseconds of a step, its speed over ours, and the seconds of the first call."""
    rows = []
    for line in lines:
        for name, times in line["seconds"].items():
            kind = "bf16" if line["bf16"] else "float32"
            numbers = f"{1000 * median(times):.0f}", f"{line['speedup'][name]:.2f}"
            rows.append([line["encoder"], kind, name, *numbers, f"{line['first'][name]:.0f}"])
    head = ["encoder", "precision", "way", "ms a step", "times as fast", "s at first use"]
    return markdown(head, rows)


def main() -> None:
    """Measure what is not measured yet, and print the table."""
    study = Study(__doc__, "compiling.jsonl")
    study.parse()
    study.measure([{"encoder": name} for name in ENCODERS], measure)
    print(table(study.lines()))


if __name__ == "__main__":
    main()
