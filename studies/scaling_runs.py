"""The small runs that ``scaling.py`` checks its model with, and those that find its constants.

Each ``build_*`` is called in separate processes (:mod:`noprop.bench.contestants`) of one thread,
which talk by torch.distributed's gloo over the loopback. All networks are the plain float32 blocks
of :mod:`noprop.bench.plain`, so that one set of constants serves all runs.
"""

import itertools
import os
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from noprop.bench.plain import PlainDiscrete
from noprop.machine import malloc_keeps_memory
from noprop.training.gradients import flat_gradient
from noprop.training.mesh import ALONE, ProcessMesh, Requests

SHAPE, CLASSES, DIM, EXAMPLES = (1, 28, 28), 10, 20, 1024
BATCHES = (4, 8, 16, 32, 64)
SIZES = (4, 800, 40_000, 400_000, 4_000_000, 16_000_000)  # bytes of messages
KEPT = ExitStack()  # as long as the process lives

Work = Callable[[int], Any]


def begin(file: str = "", rank: int = 0, world: int = 1) -> None:
    """Set one thread, keep freed memory, and join the process group if there are several."""
    # The successor of the option broadcast_buffers is newer than torch 2.5.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers")
    torch.set_num_threads(1)
    KEPT.enter_context(malloc_keeps_memory())
    if world > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group(
            "gloo",
            init_method=f"file://{file}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=120),
        )


class Images:
    """Generated images; processes with the same seed take the same ones."""

    def __init__(self, seed: int = 0) -> None:
        self.draws = torch.Generator().manual_seed(seed)
        self.x = torch.randint(256, (EXAMPLES, *SHAPE), dtype=torch.uint8, generator=self.draws)
        self.y = torch.randint(CLASSES, (EXAMPLES,), generator=self.draws)

    def take(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return a mini-batch of normalised images and labels."""
        chosen = torch.randint(EXAMPLES, (batch,), generator=self.draws)
        return (self.x[chosen].float() / 255 - 0.5) / 0.25, self.y[chosen]


def make_block(dim: int = CLASSES) -> PlainDiscrete:
    """Make a block that reads latents of ``dim`` numbers."""
    block = PlainDiscrete(SHAPE, CLASSES)
    block.first[0] = nn.Linear(dim, 256)
    return block


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """Make the optimizer of all runs, with two moments a weight."""
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-3)


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Make one update."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def noised(u: Tensor) -> Tensor:
    """Draw latents at ᾱ = 1/2; speed does not depend on the level."""
    return 0.5**0.5 * u + 0.5**0.5 * torch.randn_like(u)


def block_loss(block: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return a block's denoising loss, one-hot embeddings, without its weight."""
    u = F.one_hot(y, CLASSES).float()
    return (block(noised(u), x).softmax(1) - u).square().sum(1).mean()


# -- constants -------------------------------------------------------------------------------------


def build_costs(blocks: int) -> Work:
    """Median seconds of a block's forward pass, backward pass and update, for every batch size.

    The blocks of a network take turns, so that no block's weights are still in the cache.
    """
    begin()
    images = Images()
    modules = [make_block() for _ in range(blocks)]
    optimizers = [adamw(module.parameters()) for module in modules]

    def step(batch: int, block: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
        marks = [time.perf_counter()]
        loss = block_loss(block, *images.take(batch))
        marks.append(time.perf_counter())
        optimizer.zero_grad()
        loss.backward()
        marks.append(time.perf_counter())
        optimizer.step()
        marks.append(time.perf_counter())
        return [b - a for a, b in itertools.pairwise(marks)]

    def work(units: int) -> dict[int, list[float]]:
        found = {}
        for batch in BATCHES:
            times = [
                step(batch, *pair)
                for _ in range(max(1, units * 16 // batch))
                for pair in zip(modules, optimizers, strict=True)
            ]
            found[batch] = [median(column) for column in zip(*times, strict=True)]
        return found

    return work


def build_links(rank: int, **group: Any) -> Work:
    """Median seconds, for every size: a message one way, one each way at once, an all-reduce."""
    begin(rank=rank, **group)

    def message(tensor: Tensor) -> None:
        for turn in (0, 1):
            if turn == rank:
                dist.send(tensor, 1 - rank)
            else:
                dist.recv(tensor, 1 - rank)

    def exchange(tensor: Tensor) -> None:
        sent = dist.isend(tensor, 1 - rank)
        dist.recv(torch.empty_like(tensor), 1 - rank)
        assert sent is not None
        sent.wait()

    kinds = {"message": (message, 2), "exchange": (exchange, 1), "all-reduce": (dist.all_reduce, 1)}

    def work(units: int) -> dict[str, dict[int, float]]:
        found: dict[str, dict[int, float]] = {kind: {} for kind in kinds}
        for size in SIZES:
            tensor = torch.ones(size // 4)
            for kind, (send, ways) in kinds.items():
                times = []
                for _ in range(units * (50 if size < 1_000_000 else 5)):
                    start = time.perf_counter()
                    send(tensor)
                    times.append((time.perf_counter() - start) / ways)
                found[kind][size] = median(times)
        return found

    return work


# -- the four ways of training ---------------------------------------------------------------------


def build_noprop(blocks: int, batch: int, **group: Any) -> Work:
    """NoProp-DT, one-hot; the processes of a block, if there are several, average its gradient."""
    begin(**group)
    images = Images(group.get("rank", 0))
    modules: list[nn.Module] = [make_block() for _ in range(blocks)]
    if group:
        modules = [DistributedDataParallel(m, broadcast_buffers=False) for m in modules]
    optimizers = [adamw(module.parameters()) for module in modules]

    def work(units: int) -> None:
        for _ in range(units):
            for module, optimizer in zip(modules, optimizers, strict=True):
                descend(block_loss(module, *images.take(batch)), optimizer)

    return work


def build_learned(blocks: int, batch: int, **group: Any) -> Work:
    """NoProp-DT with learned embeddings in parallel order, its gradient added up along a chain.

    A short form for time alone: no readout, no weights of the losses.
    """
    begin(**group)
    images = Images()
    modules = [make_block(DIM) for _ in range(blocks)]
    optimizers = [adamw(module.parameters()) for module in modules]
    embedding = nn.Parameter(torch.randn(CLASSES, DIM))
    shared = adamw([embedding])
    team = chain(group["world"]) if group else ALONE

    def work(units: int) -> None:
        for _ in range(units):
            x, y = images.take(batch)
            parts = []
            for module, optimizer in zip(modules, optimizers, strict=True):
                u = embedding[y]
                guess = module(noised(u), x).softmax(1) @ embedding
                descend((guess - u).square().sum(1).mean(), optimizer)
                parts.append(flat_gradient([embedding]))
                shared.zero_grad()
            total, _ = team.sum_over_units(parts, Requests())
            embedding.grad = total.view_as(embedding)
            shared.step()

    return work


def chain(world: int) -> ProcessMesh:
    """Arrange the processes in a chain, each with a part of the blocks."""
    mesh = init_device_mesh("cpu", (world, 1), mesh_dim_names=("block", "data"))
    return ProcessMesh(mesh, (), coupled=True)


class Chain(nn.Module):
    """Blocks in a chain, z = (1 - α) z + α û; its last part ends with the readout."""

    def __init__(self, blocks: int, *, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(make_block() for _ in range(blocks))
        self.w = nn.Parameter(torch.full((blocks,), 0.5).atanh())
        self.readout = nn.Linear(CLASSES, CLASSES) if last else nn.Identity()

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the end of the chain, or the logits."""
        for alpha, block in zip(self.w.tanh(), self.blocks, strict=True):
            z = (1 - alpha) * z + alpha * block(z, x).softmax(1)
        return self.readout(z)


def build_data_parallel(blocks: int, batch: int, **group: Any) -> Work:
    """Backprop through all blocks; torch's DistributedDataParallel if there are several."""
    begin(**group)
    images = Images(group.get("rank", 0))
    network: nn.Module = Chain(blocks, last=True)
    if group:
        network = DistributedDataParallel(network, broadcast_buffers=False)
    optimizer = adamw(network.parameters())

    def work(units: int) -> None:
        for _ in range(units):
            x, y = images.take(batch)
            descend(F.cross_entropy(network(torch.randn(batch, CLASSES), x), y), optimizer)

    return work


def build_pipeline(
    blocks: int, batch: int, micro_batches: int, file: str, rank: int, world: int
) -> Work:
    """Backprop by GPipe's schedule: all micro-batches forwards, then all backwards."""
    begin(file, rank, world)
    images, last = Images(), world - 1
    stage = Chain(blocks, last=rank == last)
    optimizer = adamw(stage.parameters())

    def forwards(x: Tensor, y: Tensor, sent: list[Any]) -> tuple[Tensor, Tensor]:
        z = torch.randn(len(x), CLASSES)
        if rank > 0:
            dist.recv(z, rank - 1)
        out = stage(z.requires_grad_(rank > 0), x)
        if rank < last:
            sent.append((dist.isend(out.detach(), rank + 1), out))
            return z, out
        return z, F.cross_entropy(out, y) / micro_batches

    def backwards(z: Tensor, out: Tensor, sent: list[Any]) -> None:
        gradient = None
        if rank < last:
            gradient = torch.empty_like(out)
            dist.recv(gradient, rank + 1)
        out.backward(gradient)
        if z.grad is not None:
            sent.append((dist.isend(z.grad, rank - 1), z))

    def work(units: int) -> None:
        for _ in range(units):
            x, y = images.take(batch)
            parts = zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True)
            sent: list[Any] = []
            made = [forwards(*part, sent) for part in parts]
            optimizer.zero_grad()
            for z, out in reversed(made):
                backwards(z, out, sent)
            for message, _ in sent:
                message.wait()
            optimizer.step()

    return work
