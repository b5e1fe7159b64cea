"""Training a run on all processes that torchrun started.

With fixed embeddings and a unit or more for each process nobody waits for anybody: each has a share
of the units, and when that is trained takes what is left, be it that another is slow or gone. No
process group is made, and nothing but short messages to rank 0 leaves a process. Else they are a
team (:mod:`noprop.training.mesh`), and one that loses a process ends, to be started again by
torchrun: training goes on from the checkpoints.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from noprop.build import RunData, choose_device, unit_names
from noprop.config import RunConfig, replace
from noprop.encoders import EncoderFactory
from noprop.errors import RunError
from noprop.fingerprint import fingerprint
from noprop.machine import malloc_keeps_memory
from noprop.run.assembly import is_finished
from noprop.run.folder import starting_embedding
from noprop.run.groups import (
    Job,
    Material,
    group_lock,
    groups_of,
    share_of_groups,
    train_group,
)
from noprop.run.locks import is_free
from noprop.run.member import Member
from noprop.run.metrics import recorder
from noprop.run.units import condensed, state_of, survey
from noprop.run.workers import threads_of
from noprop.training.events import Busy, Emit, Event, Followed, Found, Started
from noprop.training.layout import Layout, choose_layout
from noprop.training.mesh import PeerLostError, connected_mesh
from noprop.version import __version__

__all__ = ["own_device", "train_as_member"]

# Seconds after which units that no process trains are not waited for any more.
PATIENCE = 60.0
LOOK = 0.3  # seconds between looks at what is trained


def own_device(config: RunConfig, member: Member) -> RunConfig:
    """The configuration with this process's own GPU, where GPUs train."""
    device = choose_device(config.train.device)
    if device.type != "cuda" or device.index is not None:
        return config
    index = member.local_rank % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return replace(config, {"train.device": f"cuda:{index}"})


def train_as_member(
    member: Member,
    folder: Path,
    config: RunConfig,
    data: RunData,
    emit: Emit,
    factory: EncoderFactory | None = None,
) -> None:
    """Train a run together with the other processes, until every unit is trained.

    Args:
        member: this process.
        folder: the run, which is there, on a file system that all machines share.
        config: its configuration.
        data: its data, read by each process.
        emit: called with every event, those of the others too; on rank 0.
        factory: a user's own encoder.

    Raises:
        RunError: If the processes have other data or another version of the package.
        PeerLostError: If one has ended that this one needs; start all again to go on.
    """
    mark = fingerprint(config, data.train)
    survey(folder, config, mark)  # no unit is trained beside those of another training
    weight = starting_embedding(folder, config, data).weight.detach()
    left = [g for g in groups_of(config) if member.rank or not is_finished(folder, g, mark)]
    layout = _agreed_layout(member, config, mark, left)
    tell = member.teller(emit)
    if member.rank == 0:
        recorder(folder, tell)(Started(left, layout.size, shards=layout.shards))
    with ExitStack() as held:
        held.enter_context(threads_of(config))
        held.enter_context(malloc_keeps_memory())
        job = Job(own_device(config, member), data.task, folder, mark, factory)
        material = Material(data.train, data.validation, weight)
        crew = _Crew(member, job, material, layout, recorder(folder, tell), emit)
        if member.rank < layout.size:
            crew.train()
        crew.wait_for_all()


def _agreed_layout(member: Member, config: RunConfig, mark: str, left: Sequence[str]) -> Layout:
    """The mesh that rank 0 has chosen for what it found untrained."""
    learned = config.method.learned

    def choose() -> dict[str, Any]:
        units = unit_names(config) if learned else left
        shards = config.train.shards or 1
        chosen = choose_layout(config, member.world, units or unit_names(config)[:1], shards=shards)
        shares = chosen.shares if left else ()
        return {"shares": shares, "data": chosen.data, "shards": shards,
                "mark": mark, "version": __version__}  # fmt: skip

    plan = member.decide("plan", choose)
    if plan["version"] != __version__:
        raise RunError(
            f"rank {member.rank}: has noprop {__version__}, rank 0 has {plan['version']}; "
            "install one version on all machines"
        )
    if plan["mark"] != mark:
        raise RunError(
            f"rank {member.rank}: reads other examples, or another configuration, than rank 0; "
            "give all machines the same data"
        )
    return Layout(tuple(map(tuple, plan["shares"])), plan["data"], plan["shards"])


class _Crew:
    """A process at work with the others."""

    def __init__(
        self,
        member: Member,
        job: Job,
        material: Material,
        layout: Layout,
        record: Emit,
        emit: Emit,
    ):
        self.member, self.job, self.material, self.layout = member, job, material, layout
        self.record, self.emit = record, emit
        self.config = job.config

    @property
    def _nobody_waits(self) -> bool:
        return not self.config.method.learned and self.layout.data == 1

    def train(self) -> None:
        """Train this process's share; alone, then whatever no other has in hand."""
        config = self.config
        share = share_of_groups(config, self.layout, self.member.rank)
        if self.layout.size == 1 or self._nobody_waits:
            self._train_alone(share)
            return
        device = choose_device(config.train.device)
        if device.type == "cuda" and self.member.local_rank >= torch.cuda.device_count():
            raise RunError(
                f"torchrun: rank {self.member.rank} shares a GPU with another, and a unit with "
                f"others; start at most {torch.cuda.device_count()} processes here"
            )
        with connected_mesh(
            self.layout,
            self.member.rank,
            self.member.store,
            coupled=config.method.learned,
            device=device,
        ) as team:
            for group in share:
                train_group(self.job, self.material, group, self._listen, team)

    def _train_alone(self, share: Sequence[str]) -> None:
        """Others' units last of all, beginning with the one that they come to last.

        Of one's own none is left out for what its header says: the rest of it may be damaged.
        """
        others = [g for g in reversed(groups_of(self.config)) if g not in share]
        for group in (*share, *others):
            if group in share or not self._is_trained(group):
                train_group(self.job, self.material, group, self._listen)

    def _listen(self, event: Event) -> None:
        if not isinstance(event, Followed | Busy | Found):
            self.record(event)

    def wait_for_all(self) -> None:
        """Until every unit is trained; one that a process has left is taken up.

        Raises:
            PeerLostError: If nobody trains a unit that takes a team.
        """
        idle, left = time.monotonic(), groups_of(self.config)
        while left := [group for group in left if not self._is_trained(group)]:
            free = [g for g in left if is_free(group_lock(self.job.folder, g))]
            if self._nobody_waits and free:
                train_group(self.job, self.material, free[-1], self._listen)
            if self._nobody_waits or len(free) < len(left):
                idle = time.monotonic()
            elif time.monotonic() - idle > PATIENCE:
                raise PeerLostError(
                    f"no process trains {condensed(left)} any more; start all processes again"
                )
            self.member.listen(self.emit)
            time.sleep(LOOK)
        self.member.listen(self.emit, now=True)

    def _is_trained(self, group: str) -> bool:
        return state_of(self.job.folder, group).finished
