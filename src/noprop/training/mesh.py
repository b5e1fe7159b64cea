"""The processes that train one group together: a mesh of block × data.

Along *block* each process has some of the units of the group. Only the gradient of shared
parameters is sent, through a chain. Each process receives a sum from the previous one, adds the
gradients of its units in order, and sends the sum to the next; the total returns the same way. So
m·d numbers cross each link once in each direction per step, and none with fixed embeddings.

Along *data* each process computes some shards of a mini-batch. It sums one part of the gradient
over all shards, in order, and gathers the other parts: as many bytes as a ring all-reduce.

Both sums have the same order for any number of processes, so that on a CPU the weights are the same
to the last bit. Two more numbers in each sum request a checkpoint or a stop.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from noprop.errors import TrainingError
from noprop.training.layout import Layout

__all__ = [
    "ALONE",
    "Mesh",
    "PeerLostError",
    "PeerStoppedError",
    "ProcessMesh",
    "Requests",
    "connected_mesh",
    "keep_to_loopback",
    "peers",
]

# Timeout for a process whose machine is lost without closing its connection. Between two updates a
# process may evaluate its validation part, or write to a slow disk.
PATIENCE = timedelta(minutes=5)


class PeerLostError(TrainingError):
    """Another process of the mesh has ended."""


class PeerStoppedError(KeyboardInterrupt):
    """Another process of the mesh was stopped; all have saved the same update."""


class Requests(NamedTuple):
    """Requests of a process, or of any process of a mesh, after an update."""

    save: bool = False
    stop: bool = False


class Mesh:
    """Mesh of a single process, and base class of others.

    Attributes:
        is_alone: Whether there is no other process.
        writes: Whether this process holds the lock of the group and writes its commits.
        reports: Whether this process emits events; one of those with the same units does.
        units: Names of this process's units; None for all.
    """

    is_alone: bool = True
    writes: bool = True
    reports: bool = True
    units: frozenset[str] | None = None

    def shards(self, count: int) -> range:
        """Return the numbers of the shards that this process computes, of ``count``."""
        return range(count)

    def sum_over_shards(
        self, shards: Sequence[Float[Tensor, " n"]], requests: Requests
    ) -> tuple[Float[Tensor, " n"], Requests]:
        """Sum vectors over all shards, in their order.

        Args:
            shards: Weighted vectors of this process's shards, in order.
            requests: Requests of this process.

        Returns:
            The sum, and the requests of any process.

        Raises:
            PeerLostError: If another process of the mesh has ended.
        """
        return sum_in_order(shards), requests

    def sum_over_units(
        self, parts: Sequence[Float[Tensor, " n"]], requests: Requests
    ) -> tuple[Float[Tensor, " n"], Requests]:
        """Sum the shares of the units in the shared gradient over all units, in their order.

        Args:
            parts: Vectors of this process's units, in order.
            requests: Requests of this process.

        Returns:
            The sum, and the requests of any process.

        Raises:
            PeerLostError: If another process of the mesh has ended.
        """
        return sum_in_order(parts), requests

    def broadcast(self, number: int) -> int:
        """Return the number of the process that writes."""
        return number

    def merge(self, rows: UInt8[Tensor, "units width"]) -> UInt8[Tensor, "units width"]:
        """Fill the rows of other processes' units, which are zero here."""
        return rows

    def barrier(self) -> None:
        """Wait until all processes of the mesh have called this."""


ALONE = Mesh()


def sum_in_order(parts: Sequence[Float[Tensor, " n"]]) -> Float[Tensor, " n"]:
    """Return ((p_1 + p_2) + p_3) + …, because floating-point sums depend on the order."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


class ProcessMesh(Mesh):
    """Processes of ``torch.distributed`` that train one group.

    Args:
        mesh: Device mesh with axes ``block`` and ``data`` that contains this process.
        units: Units of this process. Along *block* they are in the group's order.
        coupled: Whether all processes of the mesh train one group, or only those along *data*.

    Attributes:
        sent: Bytes that this process has sent along each axis.
    """

    is_alone = False

    def __init__(self, mesh: DeviceMesh, units: Sequence[str], *, coupled: bool):
        self.block, self.place = mesh["block"].get_group(), mesh.get_local_rank("block")
        self.data, self.column = mesh["data"].get_group(), mesh.get_local_rank("data")
        self.rows, self.width = (mesh.size(0) if coupled else 1), mesh.size(1)
        self.units = frozenset(units)
        self.reports = self.column == 0
        self.writes = self.column == 0 and (self.place == 0 or not coupled)
        self.ranks = dist.get_process_group_ranks(self.block)
        self.device = torch.device(mesh.device_type)
        if self.device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.sent = {"block": 0, "data": 0}

    def shards(self, count: int) -> range:
        """See :meth:`Mesh.shards`; ``count`` is a multiple of the size of *data*."""
        each = count // self.width
        return range(self.column * each, (self.column + 1) * each)

    def sum_over_shards(
        self, shards: Sequence[Float[Tensor, " n"]], requests: Requests
    ) -> tuple[Float[Tensor, " n"], Requests]:
        """See :meth:`Mesh.sum_over_shards`: each process sums a part, then all gather the parts."""
        if self.width == 1:
            return super().sum_over_shards(shards, requests)
        own = torch.stack([F.pad(v, (0, 2)) for v in shards])
        own[0, -2:] = torch.tensor(requests)
        length, each = own.shape[1], len(shards)
        part = -(-length // self.width)
        own = F.pad(own, (0, part * self.width - length))
        outgoing = own.view(each, self.width, part).transpose(0, 1).contiguous()
        incoming = torch.empty_like(outgoing)
        total = torch.empty(self.width * part, dtype=own.dtype, device=own.device)
        with peers():
            dist.all_to_all_single(incoming, outgoing, group=self.data)
            mine = sum_in_order(list(incoming.view(self.width * each, part)))
            dist.all_to_all_single(total, mine.repeat(self.width), group=self.data)  # all gather
        self.sent["data"] += (self.width - 1) * (each + 1) * part * own.element_size()
        return _split(total[:length])

    def sum_over_units(
        self, parts: Sequence[Float[Tensor, " n"]], requests: Requests
    ) -> tuple[Float[Tensor, " n"], Requests]:
        """See :meth:`Mesh.sum_over_units`: a chain through the processes, forward and back."""
        if self.rows == 1:
            return super().sum_over_units(parts, requests)
        own = torch.tensor(requests, dtype=parts[0].dtype, device=parts[0].device)
        message = torch.empty(len(parts[0]) + 2, dtype=parts[0].dtype, device=parts[0].device)
        before = self.ranks[self.place - 1] if self.place else None
        after = self.ranks[self.place + 1] if self.place + 1 < self.rows else None
        with peers():
            if before is None:
                message[:-2], message[-2:] = sum_in_order(parts), own
            else:
                dist.recv(message, before, group=self.block)
                message[:-2] = sum_in_order([message[:-2], *parts])
                message[-2:] += own
            if after is not None:
                self._send(message, after)
                dist.recv(message, after, group=self.block)
            if before is not None:
                self._send(message, before)
        return _split(message)

    def _send(self, message: Tensor, rank: int) -> None:
        dist.send(message, rank, group=self.block)
        self.sent["block"] += message.numel() * message.element_size()

    def broadcast(self, number: int) -> int:
        """See :meth:`Mesh.broadcast`."""
        own = torch.tensor([int(number) if self.writes else 0], device=self.device)
        return int(self._sum(own))

    def merge(self, rows: UInt8[Tensor, "units width"]) -> UInt8[Tensor, "units width"]:
        """See :meth:`Mesh.merge`."""
        return self._sum((rows if self.reports else torch.zeros_like(rows)).to(self.device)).cpu()

    def _sum(self, numbers: Int64[Tensor, "*n"] | UInt8[Tensor, "*n"]) -> Tensor:
        """Sum numbers, each of which is zero in all processes except one."""
        with peers():
            if self.width > 1:
                dist.all_reduce(numbers, group=self.data)
            if self.rows > 1:
                dist.all_reduce(numbers, group=self.block)
        return numbers

    def barrier(self) -> None:
        """See :meth:`Mesh.barrier`."""
        with peers():
            if self.width > 1:
                dist.barrier(group=self.data)
            if self.rows > 1:  # a process that comes here represents its row along data
                dist.barrier(group=self.block)


def _split(message: Float[Tensor, " m"]) -> tuple[Float[Tensor, " n"], Requests]:
    save, stop = (bool(number) for number in message[-2:].tolist())
    return message[:-2], Requests(save, stop)


@contextmanager
def peers() -> Iterator[None]:
    """Report errors raised in this block as those of another process that has ended."""
    try:
        yield
    except RuntimeError as error:  # of gloo and nccl alike; dist.DistError is one of these
        first = " ".join(str(error).split())[:160]
        raise PeerLostError(f"another process of this training has ended ({first})") from None


def keep_to_loopback() -> None:
    """Make Gloo listen only on the loopback interface, for processes of one machine.

    By default it listens on the address of the machine's name. An interface set by the user is
    kept.
    """
    for name in {"lo", "lo0"}.intersection(name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


@contextmanager
def connected_mesh(
    layout: Layout, rank: int, store: Store, *, coupled: bool, device: torch.device
) -> Iterator[ProcessMesh]:
    """Connect this process to the others of a layout, and disconnect it at the end of the block.

    Args:
        layout: Division of the run among all processes.
        rank: Rank of this process, below ``layout.size``.
        store: Store through which the processes connect.
        coupled: Whether all processes train one group.
        device: Device of this process; CUDA devices communicate by NCCL, others by Gloo.

    Raises:
        PeerLostError: If another process does not connect.
    """
    kind = device.type if device.type == "cuda" else "cpu"
    backend = "nccl" if kind == "cuda" else "gloo"
    with peers():
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=layout.size, timeout=PATIENCE
        )
    try:
        with peers():
            shape = (len(layout.shares), layout.data)
            mesh = init_device_mesh(kind, shape, mesh_dim_names=("block", "data"))
        yield ProcessMesh(mesh, layout.share(rank), coupled=coupled)
    finally:
        dist.destroy_process_group()
