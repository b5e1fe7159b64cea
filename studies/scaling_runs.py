"""The small runs that ``scaling.py`` checks its model with, and those that find its constants.

Each ``build_*`` is built in processes of its own (:mod:`noprop.bench.contestants`), one thread
each, that talk by torch.distributed's gloo over the loopback. The networks are the plain float32
blocks of :mod:`noprop.bench.plain`, in all of them, so that one set of constants is for all.
"""

import itertools
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import timedelta
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


class Images:
    """Made-up images; every process that is given the same seed takes the same ones."""

    def __init__(self, seed: int = 0) -> None:
        self.draws = torch.Generator().manual_seed(seed)
        self.x = torch.randint(256, (EXAMPLES, *SHAPE), dtype=torch.uint8, generator=self.draws)
        self.y = torch.randint(CLASSES, (EXAMPLES,), generator=self.draws)

    def take(self, batch: int) -> tuple[Tensor, Tensor]:
        """Images, normalised, and labels."""
        chosen = torch.randint(EXAMPLES, (batch,), generator=self.draws)
        return (self.x[chosen].float() / 255 - 0.5) / 0.25, self.y[chosen]


def begin(settings: dict[str, Any]) -> None:
    """One thread, freed memory kept, and the process group where there are several."""
    warnings.filterwarnings("ignore", message=".*broadcast_buffers")  # its heir is newer than 2.5
    torch.set_num_threads(1)
    KEPT.enter_context(malloc_keeps_memory())
    if "file" in settings:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group(
            "gloo",
            init_method=f"file://{settings['file']}",
            rank=settings["rank"],
            world_size=settings["world"],
            timeout=timedelta(seconds=120),
        )


def make_block(dim: int = CLASSES) -> PlainDiscrete:
    """A block that reads latents of ``dim`` numbers."""
    block = PlainDiscrete(SHAPE, CLASSES)
    block.first[0] = nn.Linear(dim, 256)
    return block


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """The optimizer of all runs, two moments a weight."""
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-3)


def noised(u: Tensor) -> Tensor:
    """A latent at ᾱ = 1/2; speed does not depend on the level."""
    return 0.5**0.5 * u + 0.5**0.5 * torch.randn_like(u)


# -- constants -------------------------------------------------------------------------------------


def build_costs(**settings: Any) -> Work:
    """Median seconds of a block's forward pass, backward pass and update, for every batch size.

    The blocks of a network in turn, so that no block's weights are still in the cache.
    """
    begin(settings)
    images = Images()
    blocks = [make_block() for _ in range(settings["blocks"])]
    optimizers = [adamw(block.parameters()) for block in blocks]

    def step(batch: int, block: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
        marks = [time.perf_counter()]
        x, y = images.take(batch)
        u = F.one_hot(y, CLASSES).float()
        loss = (block(noised(u), x).softmax(1) - u).square().sum(1).mean()
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
                for pair in zip(blocks, optimizers, strict=True)
            ]
            found[batch] = [statistics.median(column) for column in zip(*times, strict=True)]
        return found

    return work


def build_links(**settings: Any) -> Work:
    """Median seconds, for every size: a message one way, one each way at once, an all-reduce."""
    begin(settings)
    rank = settings["rank"]

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
                found[kind][size] = statistics.median(times)
        return found

    return work


# -- the four ways of training ---------------------------------------------------------------------


def build_noprop(**settings: Any) -> Work:
    """NoProp-DT, one-hot; where a block has several processes they average its gradient."""
    begin(settings)
    images, batch = Images(settings.get("rank", 0)), settings["batch"]
    blocks: list[nn.Module] = [make_block() for _ in range(settings["blocks"])]
    if "file" in settings:
        blocks = [DistributedDataParallel(b, broadcast_buffers=False) for b in blocks]
    optimizers = [adamw(block.parameters()) for block in blocks]

    def work(units: int) -> None:
        for _ in range(units):
            for block, optimizer in zip(blocks, optimizers, strict=True):
                x, y = images.take(batch)
                u = F.one_hot(y, CLASSES).float()
                loss = (block(noised(u), x).softmax(1) - u).square().sum(1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    return work


def build_learned(**settings: Any) -> Work:
    """NoProp-DT with learned embeddings in parallel order, its gradient added up along a chain.

    A short form for time alone: no readout, no weights of the losses.
    """
    begin(settings)
    images, batch = Images(), settings["batch"]
    blocks = [make_block(DIM) for _ in range(settings["blocks"])]
    optimizers = [adamw(block.parameters()) for block in blocks]
    embedding = nn.Parameter(torch.randn(CLASSES, DIM))
    shared = adamw([embedding])
    team = chain(settings["world"]) if "file" in settings else ALONE

    def work(units: int) -> None:
        for _ in range(units):
            x, y = images.take(batch)
            parts = []
            for block, optimizer in zip(blocks, optimizers, strict=True):
                u = embedding[y]
                guess = block(noised(u), x).softmax(1) @ embedding
                loss = (guess - u).square().sum(1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                parts.append(flat_gradient([embedding]))
                shared.zero_grad()
            total, _ = team.sum_over_units(parts, Requests())
            embedding.grad = total.view_as(embedding)
            shared.step()

    return work


def chain(world: int) -> ProcessMesh:
    """The processes in a chain, each with a part of the blocks."""
    mesh = init_device_mesh("cpu", (world, 1), mesh_dim_names=("block", "data"))
    return ProcessMesh(mesh, (), coupled=True)


class Chain(nn.Module):
    """Blocks in a chain, z = (1 - α) z + α û; the readout on its end where it is the last part."""

    def __init__(self, blocks: int, *, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(make_block() for _ in range(blocks))
        self.w = nn.Parameter(torch.full((blocks,), 0.5).atanh())
        self.readout = nn.Linear(CLASSES, CLASSES) if last else nn.Identity()

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The end of the chain, or the logits."""
        for alpha, block in zip(self.w.tanh(), self.blocks, strict=True):
            z = (1 - alpha) * z + alpha * block(z, x).softmax(1)
        return self.readout(z)


def build_data_parallel(**settings: Any) -> Work:
    """Backprop through all blocks; torch's DistributedDataParallel where there are several."""
    begin(settings)
    images, batch = Images(settings.get("rank", 0)), settings["batch"]
    network: nn.Module = Chain(settings["blocks"], last=True)
    if "file" in settings:
        network = DistributedDataParallel(network, broadcast_buffers=False)
    optimizer = adamw(network.parameters())

    def work(units: int) -> None:
        for _ in range(units):
            x, y = images.take(batch)
            loss = F.cross_entropy(network(torch.randn(batch, CLASSES), x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return work


def build_pipeline(**settings: Any) -> Work:
    """Backprop by GPipe's schedule: all micro-batches forwards, then all backwards."""
    begin(settings)
    images, rank, last = Images(), settings["rank"], settings["world"] - 1
    batch, micro_batches = settings["batch"], settings["micro_batches"]
    stage = Chain(settings["blocks"], last=rank == last)
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


def split(blocks: int, parts: int) -> Sequence[int]:
    """How many blocks each part has, dealt in turn."""
    return [len(range(i, blocks, parts)) for i in range(parts)]
