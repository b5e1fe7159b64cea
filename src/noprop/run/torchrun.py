"""The engine of torchrun: all processes that it started run the same program and work on one run.

With fixed embeddings, and a unit or more for each process, no process waits for another: each
trains its share of the units and then whatever is left, because another is slow or gone. Only short
messages to rank 0 leave a process. Otherwise they are a mesh (:mod:`noprop.training.mesh`), which
ends when it loses a process; torchrun starts all again, and training resumes from the checkpoints.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import torch

from noprop.config import RunConfig, replace
from noprop.encoders import EncoderFactory
from noprop.errors import RunError
from noprop.machine import choose_device
from noprop.run.engine import Engine
from noprop.run.locks import is_free
from noprop.run.rendezvous import Rendezvous, joined
from noprop.run.resolve import with_data
from noprop.run.run import Run
from noprop.run.units import condensed, group_lock, groups_of, share_of_groups, state_of
from noprop.run.worker import Job, work_on
from noprop.task import RunData
from noprop.training.events import Emit
from noprop.training.layout import Layout, choose_layout
from noprop.training.mesh import PeerLostError, connected_mesh
from noprop.version import __version__

__all__ = ["TorchrunEngine"]

PATIENCE = 60.0  # seconds to wait for a mesh that trains no unit
LOOK = 0.3  # seconds between looks at what is trained


class TorchrunEngine(Engine):
    """The processes that torchrun started, of which this one is one.

    Attributes:
        place: Rank of this process and its way to the others, inside ``opened``.
    """

    name = "torchrun"
    place: Rendezvous

    @contextmanager
    def opened(self, config: RunConfig) -> Iterator[None]:
        """Join the other processes; at the end of the block, wait for rank 0."""
        if hasattr(self, "place"):
            yield
            return
        self.place = joined()
        self.reports = self.place.rank == 0
        try:
            yield
            self.place.leave()
        finally:
            del self.place

    def join(
        self,
        config: RunConfig,
        folder: Path,
        data: RunData | Sequence[Any] | None = None,
        data_dir: Path | str | None = None,
        encoder: EncoderFactory | None = None,
        init: Path | str | None = None,
    ) -> Run:
        """Open the folder of a run, or make it; rank 0 does so first. See :meth:`Run.join`."""
        config, data = with_data(config, data, data_dir)
        if self.place.rank == 0:
            if not (folder / "config.toml").exists():
                shards = choose_layout(config, self.place.world, shards=config.train.shards).shards
                config = replace(config, {"train.shards": shards})
            run = Run.join(config, folder, data=data, encoder=encoder, init=init)
            self.place.decide("folder", lambda: True)
            return run
        self.place.decide("folder", lambda: True)
        if not _appears(folder / "config.toml"):
            raise RunError(
                f"rank {self.place.rank}: {folder} is not to be seen on {os.uname().nodename}; "
                "have the run in a folder that all machines share"
            )
        return Run.join(config, folder, data=data, encoder=encoder, init=init)

    def workers(self, config: RunConfig, groups: Sequence[str]) -> int:
        """Return the number of processes that have something to do."""
        return self._layout(config, groups).size

    def _layout(self, config: RunConfig, groups: Sequence[str]) -> Layout:
        units = config.method.unit_names if config.method.coupled else groups
        shards = config.train.shards or 1
        return choose_layout(
            config, self.place.world, units or config.method.unit_names[:1], shards=shards
        )

    def run(self, job: Job, groups: Sequence[str], emit: Emit) -> None:
        """Train a share of the groups, then whatever no other process holds, until all are trained.

        Raises:
            RunError: If the processes have other data or another version of the package.
            PeerLostError: If a process has ended that this one needs; start all again to resume.
        """
        layout, place = self._agreed_layout(job, groups), self.place
        job = replace_fields(job, config=_own_device(job.config, place))
        coupled, device = job.config.method.coupled, choose_device(job.config.train.device)
        alone = layout.size == 1 or (not coupled and layout.data == 1)
        tell = place.teller(emit)
        if place.rank < layout.size:
            share = share_of_groups(job.config, layout, place.rank)
            if alone:
                others = [g for g in reversed(groups_of(job.config)) if g not in share]
                work_on(job, [*share, *others], tell)
            else:
                _check_own_gpu(device, place)
                with connected_mesh(
                    layout, place.rank, place.store, coupled=coupled, device=device
                ) as mesh:
                    work_on(job, share, tell, mesh)
        self._wait_for_all(job, tell if alone and not coupled else None, emit)

    def _agreed_layout(self, job: Job, groups: Sequence[str]) -> Layout:
        """Return the mesh that rank 0 has chosen for the groups that it found untrained."""

        def choose() -> dict[str, Any]:
            layout = self._layout(job.config, groups)
            return {"shares": layout.shares, "data": layout.data, "shards": layout.shards,
                    "fingerprint": job.fingerprint, "version": __version__}  # fmt: skip

        place, plan = self.place, self.place.decide("plan", choose)
        if plan["version"] != __version__:
            raise RunError(
                f"rank {place.rank}: has noprop {__version__}, rank 0 has {plan['version']}; "
                "install one version on all machines"
            )
        if plan["fingerprint"] != job.fingerprint:
            raise RunError(
                f"rank {place.rank}: reads other examples, or another configuration, than rank 0; "
                "give all machines the same data"
            )
        return Layout(tuple(map(tuple, plan["shares"])), plan["data"], plan["shards"])

    def _wait_for_all(self, job: Job, tell: Emit | None, emit: Emit) -> None:
        """Wait until every group is trained; train one that no process holds.

        Args:
            job: The run.
            tell: Called with every event of a group that this process trains; None if a group
                takes a mesh.
            emit: Called with every event of the other processes, on rank 0.

        Raises:
            PeerLostError: If no process trains a group that takes a mesh.
        """
        idle, left = time.monotonic(), groups_of(job.config)
        while left := [group for group in left if not _is_trained(job, group)]:
            free = [g for g in left if is_free(group_lock(job.folder, g))]
            if tell and free:
                work_on(job, free[-1:], tell)
            if tell or len(free) < len(left):
                idle = time.monotonic()
            elif time.monotonic() - idle > PATIENCE:
                raise PeerLostError(
                    f"no process trains {condensed(left)} any more; start all processes again"
                )
            self.place.listen(emit)
            time.sleep(LOOK)
        self.place.listen(emit, now=True)


def _is_trained(job: Job, group: str) -> bool:
    """Return whether a group is trained; its files are read once its manifest says so."""
    return all(state_of(job.folder, group, files=files).finished for files in (False, True))


def _own_device(config: RunConfig, place: Rendezvous) -> RunConfig:
    """Return the configuration with this process's own GPU, where GPUs train."""
    device = choose_device(config.train.device)
    if device.type != "cuda" or device.index is not None:
        return config
    index = place.local_rank % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return replace(config, {"train.device": f"cuda:{index}"})


def _check_own_gpu(device: torch.device, place: Rendezvous) -> None:
    if device.type == "cuda" and place.local_rank >= torch.cuda.device_count():
        raise RunError(
            f"torchrun: rank {place.rank} shares a GPU with another, and a unit with others; start "
            f"at most {torch.cuda.device_count()} processes here"
        )


def _appears(path: Path, patience: float = 10.0) -> bool:
    """Return whether a file exists, or does soon: a network file system may lag behind."""
    deadline = time.monotonic() + patience
    while not path.is_file():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
