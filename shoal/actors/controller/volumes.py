"""The verbs that are about volumes: see `shoal.model.verbs` for what each does and raises.

A volume is on record before it is made, and until it is removed: whatever a kill leaves half made or half removed is
removed by the next look.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from shoal.actors.controller.accounts import Accounts
from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.object_storage import ObjectStorage
from shoal.actors.controller.record_writer import RecordWriter, audited
from shoal.actors.controller.registry import Registry
from shoal.actors.controller.store import Change, Restored
from shoal.actors.handles import call
from shoal.actors.objects import ObjectAccess
from shoal.actors.volumes import VolumeAccess, VolumeKeeper
from shoal.model import verbs
from shoal.model.access import INSIDE, Caller
from shoal.model.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    QuotaExceeded,
    ShoalError,
    Unavailable,
    VolumeNotFound,
)
from shoal.model.ids import VOLUME, new_volume_id
from shoal.model.settings import VolumeSettings
from shoal.model.spec import SandboxSpec
from shoal.model.validate import check_name
from shoal.model.verbs import Verb
from shoal.model.visibility import check_sees_environment, sees
from shoal.model.volumes import VolumeInfo, VolumeUse, check_limits

T = TypeVar("T")

log = logging.getLogger("shoal.volumes")

SWEEP_S = 5.0
"""How soon a deleted volume whose time is over is removed."""

EPHEMERAL_S = 300.0
"""How long an ephemeral volume stays that nothing uses."""

COMMIT_S = 40.0
_LET_GO_S = 40.0


@dataclass(slots=True)
class Volumes:
    """`keeper`: None where there can be no volumes. `clock`: unix seconds."""

    keeper: VolumeKeeper | None
    objects: ObjectStorage
    registry: Registry
    accounts: Accounts
    nodes: Nodes
    writer: RecordWriter
    settings: VolumeSettings
    call: Callable[..., Awaitable[Any]] = call
    clock: Callable[[], float] = time.time
    closed: set[str] = field(default_factory=set)
    """The ids of those that no sandbox may mount just now."""
    _volumes: dict[str, VolumeInfo] = field(default_factory=dict)
    _used_at: dict[str, float] = field(default_factory=dict)
    _going: set[str] = field(default_factory=set)
    """The ids of those that are being removed."""
    _turns: weakref.WeakValueDictionary[str, asyncio.Lock] = field(default_factory=weakref.WeakValueDictionary)

    def restore(self, restored: Restored) -> None:
        """Takes over what the store kept."""
        self._volumes = {volume.id: volume for volume in restored.volumes}

    def count(self, environment: str) -> int:
        """How many an environment has."""
        return sum(1 for each in self._volumes.values() if each.environment == environment and _there(each))

    def held_at_most(self, environment: str) -> tuple[int, int]:
        """The sums of the limits of an environment's volumes, also of those that wait to be removed: bytes, files."""
        found = [each for each in self._volumes.values() if each.environment == environment]
        return sum(each.size or 0 for each in found), sum(each.files or 0 for each in found)

    # -- verbs --------------------------------------------------------------------------------------

    async def create(
        self,
        name: str,
        environment: str,
        size: int | None,
        files: int | None,
        ephemeral: bool,
        exist_ok: bool,
        caller: Caller,
    ) -> VolumeInfo:
        """A new one; `exist_ok`: or the one of that name."""
        check_name("name", name)
        check_limits(size, files)
        check_sees_environment(caller, environment)
        self.accounts.quota(environment)
        async with self.turn(f"{environment}/{name}"):
            found = self._named(name, environment)
            if found is not None:
                if exist_ok:
                    return found
                raise AlreadyExists(
                    f"name: environment {environment!r} has a volume {name!r}; use Volume.from_name, or another name",
                    field="name",
                )
            if self.count(environment) >= self.settings.count:
                raise QuotaExceeded(
                    f"volumes: environment {environment!r} has {self.settings.count} volumes, which is the most "
                    "(volumes.count); delete some",
                    field="volumes",
                )
            self._check_quota(environment, size, files)
            return await self._make(
                VolumeInfo(new_volume_id(), name, environment, self.clock(), size, files, ephemeral, ready=False),
                caller,
            )

    def volumes(self, environment: str | None, deleted: bool, caller: Caller) -> list[VolumeInfo]:
        """Those that the caller may see."""
        if environment is not None:
            self.accounts.environment(environment, caller)
        wanted = (
            each
            for each in self._volumes.values()
            if each.ready and environment in (None, each.environment) and sees(caller, each.environment)
        )
        return sorted(
            (each for each in wanted if (each.deleted_at is not None) == deleted),
            key=lambda each: (each.environment, each.name, each.created_at),
        )

    async def limit(
        self, name: str, environment: str, size: int | None, files: int | None, caller: Caller
    ) -> VolumeInfo:
        """Changes what it may hold."""
        check_limits(size, files)
        found = self.known(name, environment, caller)
        async with self.turn(found.id):
            self._check_quota(environment, size, files, found)
            await self._keep(lambda keeper, storage: keeper.limit(found.id, size, files, storage))
            return await self.put(replace(self.known(found.id, environment, caller), size=size, files=files),
                                   verbs.limit_volume, caller)  # fmt: skip

    async def rename(self, name: str, environment: str, to: str, caller: Caller) -> VolumeInfo:
        """Gives it another name."""
        check_name("to", to)
        found = self.known(name, environment, caller)
        async with self.turn(f"{environment}/{to}"):
            other = self._named(to, environment)
            if other is not None and other.id != found.id:
                raise AlreadyExists(
                    f"to: environment {environment!r} has a volume {to!r}; delete that first, or take another name",
                    field="to",
                )
            return await self.put(replace(self.known(found.id, environment, caller), name=to),
                                  verbs.rename_volume, caller)  # fmt: skip

    async def delete(self, name: str, environment: str, now: bool, caller: Caller) -> VolumeInfo:
        """Has one go: after the grace time, or (`now`) as soon as no sandbox has it mounted."""
        found = self.known(name, environment, caller)
        at = self.clock() - (self.settings.grace if now or found.ephemeral else 0.0)
        return await self.put(replace(found, deleted_at=at), verbs.delete_volume, caller)

    async def undelete(self, name: str, environment: str, caller: Caller) -> VolumeInfo:
        """Takes a deletion back."""
        check_sees_environment(caller, environment)
        going = [
            each
            for each in self._volumes.values()
            if each.environment == environment and each.deleted_at is not None and name in (each.id, each.name)
        ]
        if not going:
            raise VolumeNotFound(f"environment {environment!r} has no deleted volume {name:.80}", field="name")
        found = max(going, key=lambda each: each.deleted_at or 0.0)
        async with self.turn(f"{environment}/{found.name}"):
            if self._named(found.name, environment) is not None:
                raise AlreadyExists(
                    f"name: environment {environment!r} has another volume {found.name!r} by now; delete that first",
                    field="name",
                )
            if found.id not in self._volumes or found.id in self._going or not found.ready:
                raise VolumeNotFound(f"volume {found.id} is gone", field="name")
            return await self.put(replace(found, deleted_at=None), verbs.restore_volume, caller)

    async def commit(self, name: str, environment: str, caller: Caller) -> VolumeInfo:
        """Returns once all that sandboxes have written and closed is durable and seen elsewhere."""
        found = self.known(name, environment, caller)
        holders = [each for each in self.registry.live() if each.started is not None and found.id in each.volumes]
        nodes = {each.started.node_id for each in holders if each.started is not None}
        committing = (
            self.call(self.nodes.handle(node_id), "commit_mount", found.id, timeout_s=COMMIT_S)
            for node_id in nodes
            if self.nodes.known(node_id)
        )
        try:
            await asyncio.gather(*committing)
        except DeadlineExceeded as error:
            raise Unavailable(f"volume {found.name} is not committed: {error}", field="volume") from None
        await self._keep(lambda keeper, _: keeper.sync())
        return found

    # -- what the others ask ------------------------------------------------------------------------

    def all(self) -> list[VolumeInfo]:
        """All that there are, also those that are being made or wait to be removed."""
        return list(self._volumes.values())

    def of_environment(self, environment: str) -> list[VolumeInfo]:
        """All of an environment that have been made, also those that wait to be removed."""
        return [each for each in self._volumes.values() if each.environment == environment and each.ready]

    def used_at(self, volume_id: str) -> float:
        """When a sandbox last had it mounted, as far as is known; else when it was made or found again."""
        return self._used_at.setdefault(volume_id, self.clock())

    async def measure(self, volume_id: str) -> VolumeUse:
        """What it holds now."""
        return await self._keep(lambda keeper, storage: keeper.use(volume_id, storage))

    def held(self, spec: SandboxSpec) -> tuple[str, ...]:
        """The ids of what a spec mounts, in its order, empty for what is no volume; `VolumeNotFound`."""
        if not spec.volumes:
            return ()
        return tuple(self._of_spec(each.volume, spec) if each.volume else "" for each in spec.volumes)

    def nodes_mounting(self, spec: SandboxSpec) -> tuple[str, ...] | None:
        """The nodes that can mount what a spec names; None: any can."""
        if self.keeper is None or not self.keeper.only_on_head or not any(each.volume for each in spec.volumes):
            return None
        return tuple(node.id for node in self.nodes.known_nodes() if node.is_head)

    async def access(self, volume_id: str) -> VolumeAccess:
        """For nodes: how to mount one."""
        if volume_id not in self._volumes:
            raise VolumeNotFound(f"there is no volume {volume_id}")
        return await self._keep(lambda keeper, storage: keeper.access(volume_id, storage))

    async def sweep(self) -> None:
        """Removes what shall go and is not used any more."""
        now = self.clock()
        for record in self.registry.live():
            for volume_id in record.volumes:
                self._used_at[volume_id] = now
        for volume_id in list(self._volumes):
            volume = self._volumes.get(volume_id)  # as it is now: removing the one before may have taken long
            if volume is None or not self._shall_go(volume):
                continue
            try:
                await self._remove(volume)
            except ShoalError as error:
                log.warning("volume %s is not removed yet: %s", volume.id, error)

    def _shall_go(self, volume: VolumeInfo) -> bool:
        if self.turn(f"{volume.environment}/{volume.name}").locked():
            return False  # it is being made or restored
        now = self.clock()
        idle = now - self._used_at.setdefault(volume.id, now)
        left = volume.ephemeral and idle >= EPHEMERAL_S
        over = volume.deleted_at is not None and now - volume.deleted_at >= self.settings.grace
        return (left or over or not volume.ready) and not self._is_used(volume.id)

    def _is_used(self, volume_id: str) -> bool:
        return any(volume_id in record.volumes for record in self.registry.live())

    # -- inside -------------------------------------------------------------------------------------

    async def _make(self, volume: VolumeInfo, caller: Caller) -> VolumeInfo:
        self._volumes[volume.id] = volume  # it counts from now on
        try:
            await self.writer.write(Change(volumes=(volume,)))
        except BaseException:
            self._volumes.pop(volume.id, None)
            raise
        try:
            await self._keep(lambda keeper, storage: keeper.create(volume.id, volume.size, volume.files, storage))
            return await self.put(replace(volume, ready=True), verbs.create_volume, caller)
        except BaseException:
            with suppress(ShoalError):  # the first error says more; the sweep tries again
                await asyncio.shield(self._remove(volume))
            raise

    async def _remove(self, volume: VolumeInfo) -> None:
        """Unmounts it wherever it still is, and removes it with all it holds. Nothing mounts it any more: it is found
        by nobody, and cannot be restored meanwhile."""
        self._going.add(volume.id)
        try:
            await self._removed(volume)
        finally:
            self._going.discard(volume.id)

    async def _removed(self, volume: VolumeInfo) -> None:
        if volume.ready and volume.deleted_at is None:
            volume = await self.put(replace(volume, deleted_at=0.0), verbs.delete_volume, INSIDE)
            if self._is_used(volume.id):
                return  # a sandbox was created meanwhile, and keeps it until it ends
        for node in self.nodes.known_nodes():
            if self.nodes.alive(node.id):
                await self.call(self.nodes.handle(node.id), "let_go_mount", volume.id, timeout_s=_LET_GO_S)
        if volume.id not in self._volumes:
            return
        await self._keep(lambda keeper, storage: keeper.destroy(volume.id, storage))
        await self.writer.write(Change(removed_volumes=(volume.id,)))
        self._volumes.pop(volume.id, None)
        self._used_at.pop(volume.id, None)

    async def put(self, volume: VolumeInfo, verb: Verb[..., Any], caller: Caller) -> VolumeInfo:
        """Records what it is now."""
        entry = audited(verb, caller, target=volume.id, environment=volume.environment)
        await self.writer.write(Change(volumes=(volume,), audit=(entry,)))
        self._volumes[volume.id] = volume
        return volume

    async def _keep(self, body: Callable[[VolumeKeeper, ObjectAccess], T]) -> T:
        """What the keeper answers, in a thread."""
        keeper = self.keeper
        if keeper is None:
            raise FailedPrecondition("volumes: this cluster has none", state="no_volumes")
        storage = await self.objects.access()
        return await asyncio.to_thread(body, keeper, storage)

    def _check_quota(
        self, environment: str, size: int | None, files: int | None, instead_of: VolumeInfo | None = None
    ) -> None:
        """Raises `QuotaExceeded` where the limits of all volumes would add up to more than the environment may have."""
        quota = self.accounts.quota(environment)
        held = self.held_at_most(environment)
        before = (0, 0) if instead_of is None else (instead_of.size or 0, instead_of.files or 0)
        for name, wanted, most, used, own in (
            ("size", size, quota.volume_bytes, held[0], before[0]),
            ("files", files, quota.volume_files, held[1], before[1]),
        ):
            if most is None:
                continue
            if wanted is None or used - own + wanted > most:
                raise QuotaExceeded(
                    f"{name}: the volumes of environment {environment!r} may have {most:,} together, and the others "
                    f"have {used - own:,}; give {max(0, most - used + own):,} at most, or have the quota raised",
                    field=name,
                )

    def _of_spec(self, name: str, spec: SandboxSpec) -> str:
        found = self._find(name, spec.environment)
        if found is None:
            raise VolumeNotFound(
                f"volumes: environment {spec.environment!r} has no volume {name:.80}; `shoal volume ls` lists those "
                "that it has",
                field="volumes",
            )
        if found.id in self.closed:
            raise Unavailable(f"volumes: {found.name} goes back to a version just now; try again", field="volumes")
        self._used_at[found.id] = self.clock()
        return found.id

    def known(self, name: str, environment: str, caller: Caller) -> VolumeInfo:
        """The volume of that name or id; `VolumeNotFound`."""
        check_sees_environment(caller, environment)
        found = self._find(name, environment)
        if found is None:
            raise VolumeNotFound(
                f"environment {environment!r} has no volume {name:.80}; `shoal volume ls` lists those that it has",
                field="name",
            )
        return found

    def _find(self, name: str, environment: str) -> VolumeInfo | None:
        if VOLUME.fullmatch(name) and (found := self._volumes.get(name)) is not None:
            return found if found.environment == environment and _there(found) else None
        return self._named(name, environment)

    def _named(self, name: str, environment: str) -> VolumeInfo | None:
        return next(
            (
                each
                for each in self._volumes.values()
                if each.name == name and each.environment == environment and _there(each)
            ),
            None,
        )

    def turn(self, name: str) -> asyncio.Lock:
        """What one call at a time may hold about a volume's id, or a name in an environment."""
        turn = self._turns.get(name)
        if turn is None:
            turn = self._turns[name] = asyncio.Lock()
        return turn


def _there(volume: VolumeInfo) -> bool:
    return volume.ready and volume.deleted_at is None
