"""Images per second of a continuous chain of T steps, and what each saving is worth, in one run.

Three ways to the same latents (float32, made-up 28×28 images, an untrained network of Fig. 5):
``ours`` keeps x's part of the head's first layer and a table of t's part; ``features`` keeps x's
features and joins them with those of z and t at every step; ``plain`` asks the whole network at
every step, convolutions and all. The slower ways are timed over fewer steps, each of which costs
the same.

    python benchmarks/inference.py [--threads 2] [--images 500] [--steps 1000] [--rounds 3]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from noprop.build import Task, build_embedding, build_method
from noprop.config import RunConfig, replace
from noprop.data import Normalization
from noprop.diffusion import step_coefficients
from noprop.methods.ct import ContinuousNoProp
from noprop.networks import ContinuousBlock, sinusoidal_embedding


def joined(network: ContinuousBlock, z: Tensor, features: Tensor, t: Tensor) -> Tensor:
    """Logits as one writes them first: the three features side by side into the head."""
    time_features = network.time(sinusoidal_embedding(t.expand(len(z))))
    together = torch.cat([features, network.latent(z), time_features], dim=1)
    return network.head(network.head.join(together))


@torch.no_grad()
def chain(
    method: ContinuousNoProp, z: Tensor, steps: int, logits: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The mean chain's first ``steps`` steps, from the same latents every time."""
    k = step_coefficients(method.schedule.levels(method.num_steps)).to("cpu", torch.float32)
    t = torch.linspace(0, 1, method.num_steps + 1)
    for i in range(steps):
        guess = logits(z, t[i : i + 1]).softmax(dim=1) @ method.embedding.weight
        z = k.a[i] * guess + k.b[i] * z
    return z


def main() -> None:
    """Check that the three ways agree, time them, and print images a second and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    steps, n = arguments.steps, arguments.images
    config = replace(RunConfig(), {"method.name": "ct", "method.steps": steps})
    task = Task((1, 28, 28), tuple("0123456789"), Normalization((0.13,), (0.31,)))
    method = build_method(config, task, build_embedding(config, task, None))
    assert isinstance(method, ContinuousNoProp)
    network = method.unit.network.eval()
    method.unit.readout.eval()
    g = torch.Generator().manual_seed(0)
    x = torch.empty(n, 1, 28, 28).normal_(generator=g)
    z = torch.zeros(n, 10)
    features = network.image(x)

    def ours(steps: int) -> Tensor:
        del steps  # all of them
        return method.predict(x, g, noise=False).latents[-1]

    def cached(steps: int) -> Tensor:
        return chain(method, z, steps, lambda z, t: joined(network, z, features, t))

    def plain(steps: int) -> Tensor:
        return chain(method, z, steps, lambda z, t: joined(network, z, network.image(x), t))

    features = features.detach()
    difference = (ours(steps) - cached(steps)).abs().max().item()
    ways = {"ours": (ours, steps), "features": (cached, max(1, steps // 5)), "plain": (plain, 3)}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, (way, count) in ways.items():
            began = time.perf_counter()
            with torch.no_grad():
                way(count)
            taken = (time.perf_counter() - began) / count * steps
            speeds[name].append(n / taken)
    ratios = {
        name: [a / b for a, b in zip(speeds["ours"], speeds[name], strict=True)]
        for name in ("features", "plain")
    }
    print(json.dumps({
        "steps": steps,
        "images_per_second": {k: round(statistics.median(v), 1) for k, v in speeds.items()},
        "ours_over": {k: round(statistics.median(v), 1) for k, v in ratios.items()},
        "ours_over_range": {k: [round(min(v), 1), round(max(v), 1)] for k, v in ratios.items()},
        "greatest_difference_of_a_latent": difference,
        "threads": arguments.threads,
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
