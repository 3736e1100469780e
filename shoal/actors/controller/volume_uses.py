"""What volumes hold: each, as it was last measured, and all of an environment together.

Measuring one starts a program for about a twentieth of a second, so lists tell the last measurement. One volume at a
time is measured by itself: where nobody has, or a sandbox has used it since; those that are used, every ten seconds.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace

from shoal.actors.controller.accounts import Accounts
from shoal.actors.controller.volumes import SWEEP_S, Volumes
from shoal.model import tasks
from shoal.model.access import Caller
from shoal.model.errors import ShoalError
from shoal.model.volumes import VolumeInfo, VolumesUse, VolumeUse

log = logging.getLogger("shoal.volumes")

AGAIN_S = 10.0
_AT_ONCE = 4
_ALL_S = 60.0
"""How long all volumes of an environment are measured, at most."""


@dataclass(slots=True)
class VolumeUses:
    """`_known`: the last measurements, by id."""

    volumes: Volumes
    accounts: Accounts
    _known: dict[str, VolumeUse] = field(default_factory=dict)

    async def volume(self, name: str, environment: str, use: bool, caller: Caller) -> VolumeInfo:
        """One, by name or id; `use`: with what it holds now."""
        found = self.volumes.known(name, environment, caller)
        return replace(found, use=await self._measure(found.id) if use else self._known.get(found.id))

    def listed(self, environment: str | None, deleted: bool, caller: Caller) -> list[VolumeInfo]:
        """Those that the caller may see, with what they held when they were last measured."""
        found = self.volumes.volumes(environment, deleted, caller)
        return [replace(each, use=self._known.get(each.id)) for each in found]

    async def of_environment(self, name: str, caller: Caller) -> VolumesUse:
        """What all volumes of an environment hold together, also those that wait to be removed."""
        quota = self.accounts.environment(name, caller).quota
        places = asyncio.Semaphore(_AT_ONCE)

        async def measured(volume: VolumeInfo) -> None:
            async with places:
                if self._is_due(volume, 0.0):
                    await self._measure(volume.id)

        found = self.volumes.of_environment(name)
        measuring = [tasks.shared(measured(each), "measure volume") for each in found]
        if measuring:
            done, late = await asyncio.wait(measuring, timeout=_ALL_S)
            for task in late:
                task.cancel()
            failed = len(late) + sum(1 for task in done if task.exception() is not None)
        else:
            failed = 0
        known = [self._known[each.id] for each in found if each.id in self._known]
        size, files = self.volumes.held_at_most(name)
        return VolumesUse(
            environment=name,
            volumes=len(found),
            bytes=sum(each.bytes for each in known),
            files=sum(each.files for each in known),
            size_limits=size,
            files_limits=files,
            size_quota=quota.volume_bytes,
            files_quota=quota.volume_files,
            unmeasured=failed,
        )

    async def turn(self) -> None:
        """Measures the one that needs it most."""
        for gone in self._known.keys() - {each.id for each in self.volumes.all()}:
            del self._known[gone]
        due = [each for each in self.volumes.all() if self._is_due(each, AGAIN_S)]
        if not due:
            return
        oldest = min(due, key=self._measured_at)
        try:
            await self._measure(oldest.id)
        except ShoalError as error:
            log.info("volume %s is not measured: %s", oldest.id, error)
            # The others have their turn first.
            self._known[oldest.id] = replace(self._known.get(oldest.id, VolumeUse()), at=self.volumes.clock())

    async def _measure(self, volume_id: str) -> VolumeUse:
        began = self.volumes.clock()
        held = replace(await self.volumes.measure(volume_id), at=began)
        self._known[volume_id] = held
        return held

    def _is_due(self, volume: VolumeInfo, again_s: float) -> bool:
        """Whether something may have changed it since it was measured, which is `again_s` ago at least."""
        at = self._measured_at(volume)
        # Its last use is known by the sweep only, and what is closed takes a moment to be counted.
        may_have_changed = at < self.volumes.used_at(volume.id) + 2 * SWEEP_S
        return volume.ready and may_have_changed and self.volumes.clock() - at >= again_s

    def _measured_at(self, volume: VolumeInfo) -> float:
        known = self._known.get(volume.id)
        return 0.0 if known is None or known.at is None else known.at
