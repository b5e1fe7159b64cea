"""A team of processes of ``torch.distributed``: a device mesh of block × data.

Along *block* the shared gradient goes through a chain: each process adds those of its units, in
order, to the sum that comes from the one before, and sends it on; the whole returns the same way.
So m·d numbers cross each link of the chain, once in each direction, in one step. Along *data* each
process sums one part of the gradient over all shards, in order, and gathers the other parts: as
many bytes as a ring's all-reduce. One number more in either tells who wishes a checkpoint or stop.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from noprop.training.layout import Layout
from noprop.training.team import PeerLostError, Team, in_order

__all__ = ["MeshTeam", "keep_to_loopback", "mesh_team"]

# A process whose machine is gone without a word is waited for so long. Between two updates another
# may have to look through its validation part, or write to a slow disk.
PATIENCE = timedelta(minutes=5)


class MeshTeam(Team):
    """Processes that train one group.

    Args:
        mesh: of axes ``block`` and ``data``; this process is in it.
        units: those of this process. Along *block* they follow each other in the group's order.
        shards: of a mini-batch; a multiple of the size of ``data``.
        coupled: whether all of the mesh train one group, else only those along *data*.

    Attributes:
        sent: bytes that this process has sent along each axis.
    """

    is_alone = False

    def __init__(self, mesh: DeviceMesh, units: Sequence[str], shards: int, *, coupled: bool):
        super().__init__(shards)
        self.block, self.place = mesh["block"].get_group(), mesh.get_local_rank("block")
        self.data, column = mesh["data"].get_group(), mesh.get_local_rank("data")
        self.rows, self.width = mesh.size(0), mesh.size(1)
        each = shards // self.width
        self.shards = range(column * each, (column + 1) * each)
        self.units = frozenset(units)
        self.speaks = column == 0
        self.leads = column == 0 and (self.place == 0 or not coupled)
        self.coupled = coupled
        self.ranks = dist.get_process_group_ranks(self.block)
        self.device = torch.device(mesh.device_type)
        if self.device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.sent = {"block": 0, "data": 0}

    def mean(
        self, shards: Sequence[Float[Tensor, " n"]], wish: int
    ) -> tuple[Float[Tensor, " n"], int]:
        """See :meth:`Team.mean`: each process sums a part, then all gather the parts."""
        if self.width == 1:
            return super().mean(shards, wish)
        own = torch.stack([F.pad(v, (0, 1)) for v in shards])
        own[0, -1] = wish
        length, each = own.shape[1], len(shards)
        part = -(-length // self.width)
        own = F.pad(own, (0, part * self.width - length))
        outgoing = own.view(each, self.width, part).transpose(0, 1).contiguous()
        incoming = torch.empty_like(outgoing)
        total = torch.empty(self.width * part, dtype=own.dtype, device=own.device)
        with peers():
            dist.all_to_all_single(incoming, outgoing, group=self.data)
            mine = in_order(list(incoming.view(self.all_shards, part)))
            dist.all_to_all_single(total, mine.repeat(self.width), group=self.data)  # all gather
        self.sent["data"] += (self.width - 1) * (each + 1) * part * own.element_size()
        return total[: length - 1], round(float(total[length - 1]))

    def fold(
        self, parts: Sequence[Float[Tensor, " n"]], wish: int
    ) -> tuple[Float[Tensor, " n"], int]:
        """See :meth:`Team.fold`: a chain through the processes, there and back."""
        if self.rows == 1 or not self.coupled:
            return super().fold(parts, wish)
        message = torch.empty(len(parts[0]) + 1, dtype=parts[0].dtype, device=parts[0].device)
        before = self.ranks[self.place - 1] if self.place else None
        after = self.ranks[self.place + 1] if self.place + 1 < self.rows else None
        with peers():
            if before is None:
                message[:-1], message[-1] = in_order(parts), wish
            else:
                dist.recv(message, before, group=self.block)
                message[:-1] = in_order([message[:-1], *parts])
                message[-1] += wish
            if after is not None:
                self._send(message, after)
                dist.recv(message, after, group=self.block)
            if before is not None:
                self._send(message, before)
        return message[:-1], round(float(message[-1]))

    def _send(self, message: Tensor, rank: int) -> None:
        dist.send(message, rank, group=self.block)
        self.sent["block"] += message.numel() * message.element_size()

    def share(self, number: int) -> int:
        """See :meth:`Team.share`."""
        told = torch.tensor([int(number) if self.leads else 0], device=self.device)
        with peers():
            if self.width > 1:
                dist.all_reduce(told, group=self.data)
            if self.coupled and self.rows > 1:
                dist.broadcast(told, self.ranks[0], group=self.block)
        return int(told)

    def meet(self) -> None:
        """See :meth:`Team.meet`."""
        with peers():
            if self.width > 1:
                dist.barrier(group=self.data)
            if self.coupled and self.rows > 1:  # whoever is here, all along its data axis are
                dist.barrier(group=self.block)


@contextmanager
def peers() -> Iterator[None]:
    """In here what fails is another process."""
    try:
        yield
    except RuntimeError as error:  # of gloo and nccl alike; dist.DistError is one of these
        first = " ".join(str(error).split())[:160]
        raise PeerLostError(f"another process of this training has ended ({first})") from None


def keep_to_loopback() -> None:
    """Have Gloo listen on the loopback interface alone, for processes of one machine.

    It would listen on the address that the name of the machine stands for. What the user has set
    stays.
    """
    for name in {"lo", "lo0"}.intersection(name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


@contextmanager
def mesh_team(
    layout: Layout, rank: int, store: Store, *, coupled: bool, device: torch.device
) -> Iterator[MeshTeam]:
    """The team of this process, and its connections while it is used.

    Args:
        layout: of all processes.
        rank: of this one, below ``layout.size``.
        store: where they find each other.
        coupled: whether all of them train one group.
        device: of this process; ``cuda`` ones talk by NCCL, others by Gloo.

    Raises:
        PeerLostError: If another process does not come.
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
        yield MeshTeam(mesh, layout.share(rank), layout.shards, coupled=coupled)
    finally:
        dist.destroy_process_group()
