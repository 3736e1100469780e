"""The sandboxes through which the files of volumes are reached from outside.

A volume's files are read and written by a small sandbox of the cluster's own that has it mounted: so they go the way of
all files, with its streaming and isolation, and no other program of the cluster ever follows a name in a volume.
"""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import dataclass, field

from shoal.actors.controller.sandboxes import Sandboxes
from shoal.actors.controller.volumes import Volumes
from shoal.model.access import INSIDE, Caller
from shoal.model.info import SandboxInfo
from shoal.model.mounts import MountSpec
from shoal.model.options import build_spec
from shoal.model.settings import Settings
from shoal.model.states import State
from shoal.model.volume_paths import DATA, OTHER
from shoal.model.volumes import VolumeInfo

_IDLE_S = 60.0
_START_S = 90.0


@dataclass(slots=True)
class VolumeFiles:
    """One for each volume, or two together, that somebody uses now. They are found no more once the controller is
    another; then they end by themselves."""

    volumes: Volumes
    sandboxes: Sandboxes
    settings: Settings
    _open: dict[str, str] = field(default_factory=dict)
    _turns: weakref.WeakValueDictionary[str, asyncio.Lock] = field(default_factory=weakref.WeakValueDictionary)

    async def open(self, name: str, environment: str, other: str | None, caller: Caller) -> SandboxInfo:
        """The sandbox for a volume, running; `other`: for that one, too."""
        volume = self.volumes.known(name, environment, caller)
        mounts = [MountSpec(DATA, volume=volume.id)]
        if other is not None:
            mounts.append(MountSpec(OTHER, volume=self.volumes.known(other, environment, caller).id))
        key = " ".join(each.volume for each in mounts)
        turn = self._turns.setdefault(key, asyncio.Lock())
        async with turn:
            record = self.sandboxes.registry.get(self._open.get(key, ""))
            if record is not None and record.state is State.RUNNING:
                return record.info
            options = {
                "volumes": mounts,
                "environment": environment,
                "idle_timeout": _IDLE_S,
                "timeout": self.settings.limits.timeout,
                "tags": {"volume": volume.id},
            }
            made = await self.sandboxes.create_hidden(build_spec(options, self.settings.sandbox), _START_S)
            self._open[key] = made.id
            return made

    async def delete_volume(self, name: str, environment: str, now: bool, caller: Caller) -> VolumeInfo:
        """As `Volumes.delete`; what the cluster itself has of the volume's files goes at once."""
        deleted = await self.volumes.delete(name, environment, now, caller)
        for key in [key for key in self._open if deleted.id in key.split()]:
            record = self.sandboxes.registry.get(self._open.pop(key))
            if record is not None:
                await self.sandboxes.terminate(record.id, INSIDE)
        return deleted
