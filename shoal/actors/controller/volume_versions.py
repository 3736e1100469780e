"""The verbs that are about versions of volumes: see `shoal.model.verbs` for what each does and raises.

A node makes a version before it is on record, and removes it after it is not: it is told which there are with every
call, and removes the others, so what a kill leaves goes with the next.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from shoal.actors.controller.record import SandboxRecord
from shoal.actors.controller.sandboxes import Sandboxes
from shoal.actors.controller.volumes import Volumes
from shoal.actors.volumes import VersionChange
from shoal.model import verbs
from shoal.model.access import INSIDE, Caller
from shoal.model.errors import AlreadyExists, DeadlineExceeded, FailedPrecondition, QuotaExceeded, Unavailable
from shoal.model.validate import check_name
from shoal.model.verbs import Verb
from shoal.model.volumes import FRESH_S, MOST_VERSIONS, VERSION_S, VolumeInfo, VolumeVersion


@dataclass(slots=True)
class VolumeVersions:
    """Of all volumes."""

    volumes: Volumes
    sandboxes: Sandboxes

    async def snapshot(self, name: str, environment: str, version: str, caller: Caller) -> VolumeInfo:
        """Keeps what is closed in one as a version."""
        check_name("version", version)
        volume_id = self.volumes.known(name, environment, caller).id
        async with self.volumes.turn(volume_id):
            found = self.volumes.known(volume_id, environment, caller)
            if any(each.name == version for each in found.versions):
                raise AlreadyExists(
                    f"version: volume {found.name} has a version {version!r}; delete it, or take another name",
                    field="version",
                )
            if len(found.versions) >= MOST_VERSIONS:
                raise QuotaExceeded(
                    f"version: volume {found.name} has {MOST_VERSIONS} versions, which is the most; delete some",
                    field="version",
                )
            made = VolumeVersion(version, secrets.token_hex(8), self.volumes.clock())
            await self._have_done(found, "make", made.id)
            return await self._put(found, (*found.versions, made), verbs.snapshot_volume, caller)

    async def revert(self, name: str, environment: str, version: str, caller: Caller) -> VolumeInfo:
        """Replaces all files of one by those of a version."""
        volume_id = self.volumes.known(name, environment, caller).id
        async with self.volumes.turn(volume_id):
            found = self.volumes.known(volume_id, environment, caller)
            wanted = found.version(version)
            with self._unmounted(found):
                for record in self._holders(found):
                    await self.sandboxes.terminate(record.id, INSIDE)  # hidden ones: they are opened again
                await self._have_done(found, "revert", wanted.id)
                await asyncio.sleep(FRESH_S)  # no node shows the old directory any more
            return await self._put(found, found.versions, verbs.revert_volume, caller)

    async def delete(self, name: str, environment: str, version: str, caller: Caller) -> VolumeInfo:
        """Removes a version."""
        volume_id = self.volumes.known(name, environment, caller).id
        async with self.volumes.turn(volume_id):
            found = self.volumes.known(volume_id, environment, caller)
            gone = found.version(version)
            left = tuple(each for each in found.versions if each != gone)
            changed = await self._put(found, left, verbs.delete_version, caller)
            await self._have_done(changed, "tidy", gone.id)
            return changed

    @contextmanager
    def _unmounted(self, volume: VolumeInfo) -> Iterator[None]:
        """No sandbox of a user's has it mounted, and none gets it meanwhile."""
        held = [record.id for record in self._holders(volume) if not record.hidden]
        if held:
            raise FailedPrecondition(
                f"volume {volume.name} is mounted in {len(held)} sandboxes, such as {held[0]}; end them first",
                state="mounted",
            )
        self.volumes.closed.add(volume.id)
        try:
            yield
        finally:
            self.volumes.closed.discard(volume.id)

    def _holders(self, volume: VolumeInfo) -> list[SandboxRecord]:
        return [record for record in self.volumes.registry.live() if volume.id in record.volumes]

    async def _have_done(self, volume: VolumeInfo, do: Any, version: str) -> None:
        """Has a node do it: one that has the volume mounted, if there is one."""
        change = VersionChange(do, version, tuple(each.id for each in volume.versions))
        handle = self.volumes.nodes.handle(self._node(volume))
        try:
            await self.volumes.call(handle, "change_versions", volume.id, change, timeout_s=VERSION_S)
        except DeadlineExceeded as error:
            raise Unavailable(f"volume {volume.name}: {error}", field="version") from None

    def _node(self, volume: VolumeInfo) -> str:
        nodes = self.volumes.nodes
        mounting = (each.started.node_id for each in self._holders(volume) if each.started is not None)
        others = (each.id for each in sorted(nodes.known_nodes(), key=lambda each: not each.is_head))
        only_head = self.volumes.keeper is not None and self.volumes.keeper.only_on_head
        wanted = others if only_head else (*mounting, *others)
        found = next((node_id for node_id in wanted if nodes.alive(node_id)), None)
        if found is None:
            raise Unavailable("no node answers that could mount the volume", field="volume")
        return found

    async def _put(
        self, volume: VolumeInfo, versions: tuple[VolumeVersion, ...], verb: Verb[..., Any], caller: Caller
    ) -> VolumeInfo:
        newest = self.volumes.known(volume.id, volume.environment, caller)
        return await self.volumes.put(replace(newest, versions=versions), verb, caller)
