"""Ways to train T blocks of NoProp-DT on one device: images per second and peak memory of each.

Every way trains the same plain blocks of Fig. 5 on the same mini-batch, and differs in how the T
steps are launched. On a GPU a block of this size does not fill the device, so the launches decide.
``ours`` is what ``noprop train`` runs: the loop with our layers. The ways ``streams`` and ``graph``
need CUDA.

    python studies/block_steps.py                          # T = 10, MNIST
    python studies/block_steps.py --blocks 2 --only loop stacked --seconds 0.2   # short, on a CPU
    python studies/block_steps.py --table                  # the results so far, as Markdown
"""

import time
from collections.abc import Callable, Iterable, Iterator
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.optim import AdamW

from noprop.bench.plain import BATCH, ETA, PlainDiscrete, cosine_alpha_bar
from noprop.bench.settings import SHAPES, Settings
from noprop.bench.training import trainers
from noprop.machine import choose_device, peak_memory, reset_peak, use_bf16
from study import Line, Study, markdown

ROUNDS = 5
Step = Callable[[Tensor, Tensor], object]
Weights = dict[str, Tensor]


class Blocks:
    """T blocks, and the latents and weights of their losses.

    Args:
        settings: Shapes and T.
        device: Device of the blocks.
        bf16: Whether convolutions and products run in bf16.
    """

    def __init__(self, settings: Settings, device: torch.device, *, bf16: bool):
        torch.manual_seed(0)
        self.device, self.bf16 = device, bf16
        self.shape, self.classes = settings.shape, settings.classes
        self.networks = [
            PlainDiscrete(settings.shape, settings.classes).to(device)
            for _ in range(settings.blocks)
        ]
        alpha_bar = cosine_alpha_bar(settings.blocks).to(device)
        snr = alpha_bar / (1 - alpha_bar)
        self.alpha_bar = alpha_bar[:-1]
        self.weights = settings.blocks / 2 * ETA * snr.diff()

    def latents(self, u: Tensor) -> Tensor:
        """Return a draw of z_{t-1} for every block, (T, B, m)."""
        a = self.alpha_bar[:, None, None]
        noise = torch.randn(len(self.alpha_bar), *u.shape, device=self.device)
        return a.sqrt() * u + (1 - a).sqrt() * noise

    def targets(self, y: Tensor) -> Tensor:
        """Return the embeddings of labels, (B, m)."""
        return F.one_hot(y, self.classes).float()

    def error(self, logits: Tensor, u: Tensor, weight: Tensor) -> Tensor:
        """Return a block's loss (Eq. 8)."""
        return weight * (logits.float().softmax(1) - u).square().sum(1).mean()

    def optimizer(self, parameters: Iterable[Tensor], *, capturable: bool = False) -> AdamW:
        """Return an optimizer with the paper's settings."""
        return AdamW(parameters, lr=1e-3, weight_decay=1e-3, fused=True, capturable=capturable)

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


# -- the ways --------------------------------------------------------------------------------------


def loop(blocks: Blocks, *, capturable: bool = False) -> Step:
    """Step each block after the one before."""
    optimizers = [
        blocks.optimizer(network.parameters(), capturable=capturable) for network in blocks.networks
    ]

    def step(x: Tensor, y: Tensor) -> None:
        u = blocks.targets(y)
        z = blocks.latents(u)
        for t, (network, optimizer) in enumerate(zip(blocks.networks, optimizers, strict=True)):
            _update(blocks, network, optimizer, t, x, u, z[t])

    return step


def _update(
    blocks: Blocks,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    t: int,
    x: Tensor,
    u: Tensor,
    z: Tensor,
) -> None:
    optimizer.zero_grad(set_to_none=True)
    with blocks.autocast():
        logits = network(z, x)
    blocks.error(logits, u, blocks.weights[t]).backward()
    optimizer.step()


def streams(blocks: Blocks) -> Step:
    """Step every block in a stream of its own."""
    lanes = [torch.cuda.Stream() for _ in blocks.networks]
    optimizers = [blocks.optimizer(network.parameters()) for network in blocks.networks]

    def step(x: Tensor, y: Tensor) -> None:
        u = blocks.targets(y)
        z = blocks.latents(u)
        current = torch.cuda.current_stream()
        for t, lane in enumerate(lanes):
            lane.wait_stream(current)
            with torch.cuda.stream(lane):
                _update(blocks, blocks.networks[t], optimizers[t], t, x, u, z[t])
        for lane in lanes:
            current.wait_stream(lane)

    return step


def graph(blocks: Blocks) -> Step:
    """Capture the loop once, and replay it: one launch for all blocks."""
    eager = loop(blocks, capturable=True)
    held: Weights = {}
    captured = torch.cuda.CUDAGraph()

    def step(x: Tensor, y: Tensor) -> None:
        if not held:
            held["x"], held["y"] = x.clone(), y.clone()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):  # allocates, and chooses kernels
                    eager(held["x"], held["y"])
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(captured):
                eager(held["x"], held["y"])
        held["x"].copy_(x)
        held["y"].copy_(y)
        captured.replay()

    return step


def stacked(blocks: Blocks) -> Step:
    """Stack the weights of all blocks, so that each layer of all T is one grouped operation."""
    parameters, buffers = stack_module_state(blocks.networks)
    leaves = {name: p.detach() for name, p in parameters.items()}
    for t, network in enumerate(blocks.networks):  # its weights are those that are trained
        for name, p in network.named_parameters():
            p.data = leaves[name][t]
    base = blocks.networks[0]
    optimizer = blocks.optimizer(leaves.values())

    def loss(p: Weights, b: Weights, z: Tensor, weight: Tensor, x: Tensor, u: Tensor) -> Tensor:
        with blocks.autocast():
            logits = functional_call(base, (p, b), (z, x))
        return blocks.error(logits, u, weight)

    gradients = vmap(grad_and_value(loss), in_dims=(0, 0, 0, 0, None, None), randomness="different")

    def step(x: Tensor, y: Tensor) -> None:
        u = blocks.targets(y)
        found, _ = gradients(leaves, buffers, blocks.latents(u), blocks.weights, x, u)
        for name, leaf in leaves.items():
            leaf.grad = found[name]
        optimizer.step()

    return step


def compiled(blocks: Blocks) -> Step:
    """Compile each block's forward and backward pass."""
    for network in blocks.networks:
        network.compile()
    return loop(blocks)


WAYS: dict[str, Callable[[Blocks], Step]] = {
    "loop": loop,
    "streams": streams,
    "graph": graph,
    "stacked": stacked,
    "compiled": compiled,
}
ON_CUDA = {"streams", "graph"}


def ours(settings: Settings) -> Step:
    """Step the units of ``noprop train``, the readout with every block, on data of their own."""
    made = trainers(settings, "dt", settings.config("dt").method.unit_names)

    def step(x: Tensor, y: Tensor) -> None:
        for trainer in made:
            for _ in range(trainer.units[0].passes):
                trainer.step()

    return step


# -- measurement -----------------------------------------------------------------------------------


def measure(key: Line, seconds: float) -> Iterator[Line]:
    """Measure a way alone on the device, in rounds of about as many seconds."""
    device = choose_device("auto")
    settings = Settings(dataset=key["dataset"], blocks=key["blocks"])
    # vmap's batch norm on a CPU takes no bf16 inputs.
    bf16 = device.type == "cuda" and use_bf16("auto", device)
    blocks = Blocks(settings, device, bf16=bf16)
    step = ours(settings) if key["way"] == "ours" else WAYS[key["way"]](blocks)
    images, labels = settings.data(BATCH)
    x, y = (images.float().to(device) / 255 - 0.5) / 0.25, labels.to(device)
    reset_peak(device)
    try:
        first = _seconds(step, x, y, 1)
    except RuntimeError as error:  # of the compiler or the capture: the other ways are measured
        yield {"failed": " ".join(str(error).split())[:500]}
        return
    count = max(1, round(seconds / _seconds(step, x, y, 1)))
    rates = [BATCH / _seconds(step, x, y, count) for _ in range(ROUNDS)]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    peak, counter = peak_memory(device)
    found = {"device": name, "bf16": bf16, "first_seconds": first, "images_per_second": rates}
    yield found | {"peak_memory_mb": peak, "counter": counter, "threads": torch.get_num_threads()}


def _seconds(step: Step, x: Tensor, y: Tensor, count: int) -> float:
    _wait(x.device)
    began = time.perf_counter()
    for _ in range(count):
        step(x, y)
    _wait(x.device)
    return (time.perf_counter() - began) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def table(lines: list[Line]) -> str:
    """Return images per second with their range, the ratio to the loop, and peak memory."""
    loops = [line for line in lines if line["way"] == "loop" and "failed" not in line]
    plain = [median(line["images_per_second"]) for line in loops]
    rows = []
    for line in lines:
        if "failed" in line:
            rows.append([line["way"], str(line["blocks"]), line["failed"][:60], "", "", "", ""])
            continue
        rates = line["images_per_second"]
        ratio = f"{median(rates) / plain[0]:.2f}" if plain else ""
        speed = f"{median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})"
        rest = f"{line['peak_memory_mb']:,.0f}", f"{line['first_seconds']:.1f}"
        rows.append([line["way"], str(line["blocks"]), line["device"], speed, ratio, *rest])
    head = ["way", "T", "device", "images/s", "times the loop", "peak MB", "s of the first step"]
    return markdown(head, rows)


def main() -> None:
    """Measure what is not measured yet, and print the table."""
    study = Study(__doc__, "block-steps.jsonl", variants=["ours", *WAYS])
    study.parser.add_argument("--dataset", choices=tuple(SHAPES), default="mnist")
    study.parser.add_argument("--blocks", type=int, default=10, help="T [%(default)s]")
    study.parser.add_argument("--seconds", type=float, default=1, help="of a round [%(default)s]")
    options = study.parse()
    run = {"dataset": options.dataset, "blocks": options.blocks}
    names = [n for n in options.only if n not in ON_CUDA or torch.cuda.is_available()]
    keys = [run | {"way": name} for name in names]
    study.measure(keys, lambda key: measure(key, options.seconds))
    if lines := study.lines(**run):
        print(table(lines))


if __name__ == "__main__":
    main()
