"""The verbs that are about pools: see `shoal.model.verbs` for what each does and raises. Pools are on record before
they count; what is ready of them is not."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from shoal.actors.controller.accounts import Accounts
from shoal.actors.controller.admission import Admission
from shoal.actors.controller.kept_pool import KeptPool
from shoal.actors.controller.pools import ReadyShape, most_within, shape_of
from shoal.actors.controller.ready_slots import ReadySlots
from shoal.actors.controller.record import HeldImage
from shoal.actors.controller.record_writer import RecordWriter, audited
from shoal.actors.controller.registry import Registry
from shoal.actors.controller.store import Change, Restored
from shoal.model import verbs
from shoal.model.access import Caller, Quota
from shoal.model.errors import AlreadyExists, ImageNotFound, PoolNotFound, QuotaExceeded
from shoal.model.pools import PoolInfo, PoolUse, check_pool_spec, check_size
from shoal.model.settings import Limits
from shoal.model.spec import SandboxSpec
from shoal.model.validate import check_name
from shoal.model.visibility import check_sees_environment, sees

Key = tuple[str, str]
"""Environment and name."""

_Served = tuple[str, ReadyShape, tuple[str, ...], str | None]


@dataclass(slots=True, eq=False)
class _Declared:
    """A pool and how it is kept. `image`: as in `SandboxRecord`."""

    info: PoolInfo
    kept: KeptPool
    image: HeldImage | None

    @property
    def spec(self) -> SandboxSpec:
        """What is ready of it."""
        return _resolved(self.info.spec, self.image)


class DeclaredPools:
    """The pools that somebody asked for. `clock`: unix seconds."""

    def __init__(
        self,
        writer: RecordWriter,
        registry: Registry,
        accounts: Accounts,
        admission: Admission,
        ready: ReadySlots,
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._writer = writer
        self._registry = registry
        self._accounts = accounts
        self._admission = admission
        self._ready = ready
        self._limits = limits
        self._clock = clock
        self._pools: dict[Key, _Declared] = {}
        self._changing = asyncio.Lock()
        """One change at a time: each is in memory once it is on record."""
        self.admitted: Callable[[SandboxSpec], Awaitable[SandboxSpec]] = _as_it_is
        """Checks that its secrets are there."""
        accounts.pools_in = self.count
        admission.images.of_pools = self._images

    def restore(self, restored: Restored) -> None:
        """Takes over what the store kept."""
        for info in restored.pools:
            image = None
            with suppress(ImageNotFound):  # what is made ready of it says so, too
                image = self._admission.images.named(info.spec)
            self._keep(info, image)

    def count(self, environment: str) -> int:
        """How many pools an environment has."""
        return sum(1 for owner, _ in self._pools if owner == environment)

    # -- verbs --------------------------------------------------------------------------------------

    async def create(
        self, name: str, spec: SandboxSpec, min_ready: int, max_ready: int, replace: bool, caller: Caller
    ) -> PoolInfo:
        """A new pool, or the one that there is if it is the same."""
        check_name("name", name)
        check_size(min_ready, max_ready, self._limits.pool_size)
        check_sees_environment(caller, spec.environment)
        check_pool_spec(spec)
        image = self._admission.check_possible(spec)
        spec = await self.admitted(spec)
        info = PoolInfo(name, spec.environment, spec, min_ready, max_ready, self._clock())
        self._check_quota(info)
        async with self._changing:
            return await self._create(info, image, replace, caller)

    def pools(self, environment: str | None, caller: Caller) -> list[PoolInfo]:
        """Those that the caller may see, by environment and name."""
        if environment is not None:
            self._accounts.environment(environment, caller)
        wanted = [key for key in self._pools if sees(caller, key[0]) and environment in (None, key[0])]
        in_use = self._in_use()
        return [self._told(self._pools[key], in_use) for key in sorted(wanted)]

    def pool(self, name: str, environment: str, caller: Caller) -> PoolInfo:
        """One, with what there is of it."""
        return self._told(self._known(name, environment, caller), self._in_use())

    async def resize(self, name: str, environment: str, min_ready: int, max_ready: int, caller: Caller) -> PoolInfo:
        """Changes how many are kept ready."""
        check_size(min_ready, max_ready, self._limits.pool_size)
        self._known(name, environment, caller)
        async with self._changing:
            pool = self._known(name, environment, caller)
            info = replace(pool.info, min_ready=min_ready, max_ready=max_ready)
            self._check_quota(info)
            entry = audited(verbs.resize_pool, caller, target=name, environment=environment)
            await self._writer.write(Change(pools=(info,), audit=(entry,)))
            pool.info = info
            self._ready.resize(pool.kept, min_ready, max_ready)
        return self._told(pool, self._in_use())

    async def delete(self, name: str, environment: str, caller: Caller) -> None:
        """Removes it. What is ready of it ends; what was taken from it lives on."""
        self._known(name, environment, caller)
        async with self._changing:
            pool = self._known(name, environment, caller)
            entry = audited(verbs.delete_pool, caller, target=name, environment=environment)
            await self._writer.write(Change(removed_pools=(pool.info.id,), audit=(entry,)))
            self._drop(pool)

    # -- inside -------------------------------------------------------------------------------------

    async def _create(self, info: PoolInfo, image: HeldImage | None, may_replace: bool, caller: Caller) -> PoolInfo:
        self._accounts.quota(info.environment)  # or there is no such environment any more
        before = self._pools.get((info.environment, info.name))
        if before is not None:
            if _same(before.info, info):
                return self._told(before, self._in_use())
            if not may_replace:
                raise AlreadyExists(
                    f"name: there is a pool {info.name!r} already; resize it, replace it, or choose another name",
                    field="name",
                )
        elif self.count(info.environment) >= self._limits.pools:
            raise QuotaExceeded(
                f"environment {info.environment!r} has {self._limits.pools} pools, which is the most; delete some"
            )
        duplicate = self._duplicate(info, _resolved(info.spec, image))
        if duplicate is not None:
            raise AlreadyExists(
                f"spec: pool {duplicate.name!r} keeps the same ready; resize that one, or ask for something else",
                field="spec",
            )
        entry = audited(verbs.create_pool, caller, target=info.name, environment=info.environment)
        await self._writer.write(Change(pools=(info,), audit=(entry,)))
        if before is not None:
            self._drop(before)
        return self._told(self._keep(info, image), self._in_use())

    def _keep(self, info: PoolInfo, image: HeldImage | None) -> _Declared:
        spec = _resolved(info.spec, image)
        kept = self._ready.declare(info.environment, info.id, spec, info.min_ready, info.max_ready)
        pool = self._pools[info.environment, info.name] = _Declared(info, kept, image)
        kept.room = lambda: self._room(pool)
        return pool

    def _drop(self, pool: _Declared) -> None:
        del self._pools[pool.info.environment, pool.info.name]
        self._ready.retire(pool.info.environment, pool.kept)

    def _known(self, name: str, environment: str, caller: Caller) -> _Declared:
        check_sees_environment(caller, environment)
        pool = self._pools.get((environment, name))
        if pool is None:
            raise PoolNotFound(
                f"name: there is no pool {name[:64]!r} in environment {environment!r}; `shoal pool ls` lists those "
                "that there are",
                field="name",
            )
        return pool

    def _images(self) -> list[str]:
        """The ids of the images that they need."""
        return [pool.image.id for pool in self._pools.values() if pool.image is not None]

    def _duplicate(self, info: PoolInfo, spec: SandboxSpec) -> PoolInfo | None:
        """Another pool that serves the same creates: which of them would one take from?"""
        others = (pool for key, pool in self._pools.items() if key != (info.environment, info.name))
        return next((each.info for each in others if _serves(each.spec) == _serves(spec)), None)

    def _check_quota(self, info: PoolInfo) -> None:
        """Its least must be within the whole quota, whatever is in use of that now."""
        most = most_within(_parts(self._accounts.quota(info.environment), Quota(0, 0.0, 0), info.spec))
        if most is not None and info.min_ready > most:
            raise QuotaExceeded(
                f"min_ready: the quota of environment {info.environment!r} allows {most} such sandboxes; "
                "ask for fewer, or have the quota raised",
                field="min_ready",
            )

    def _room(self, pool: _Declared) -> int | None:
        """How many it may have by the quota: what is ready takes no room from sandboxes, nor one pool from another."""
        quota = self._accounts.quota(pool.info.environment)
        if quota.sandboxes is None and quota.cpu is None and quota.memory is None:
            return None
        used = self._registry.usage(pool.info.environment)
        sandboxes, cpu, memory = used.sandboxes, used.cpu, used.memory
        for other in self._pools.values():
            if other is not pool and other.info.environment == pool.info.environment:
                count, r = len(other.kept.ready) + len(other.kept.making), other.info.spec.resources
                sandboxes, cpu, memory = (sandboxes + count, cpu + count * r.cpu_limit, memory + count * r.memory_limit)
        return most_within(_parts(quota, Quota(sandboxes, cpu, memory), pool.info.spec))

    def _in_use(self) -> Counter[_Served]:
        """Living sandboxes by what serves them."""
        return Counter(_serves(record.launch_spec) for record in self._registry.live()) if self._pools else Counter()

    def _told(self, pool: _Declared, in_use: Counter[_Served]) -> PoolInfo:
        kept = pool.kept
        enough = len(kept.ready) >= pool.info.min_ready
        use = PoolUse(
            ready=len(kept.ready),
            making=len(kept.making),
            in_use=in_use[_serves(pool.spec)],
            taken=kept.taken,
            missed=kept.missed,
            problem=None if enough else kept.problem,
        )
        return replace(pool.info, use=use)


async def _as_it_is(spec: SandboxSpec) -> SandboxSpec:
    return spec


def _resolved(spec: SandboxSpec, image: HeldImage | None) -> SandboxSpec:
    return spec if image is None else replace(spec, image=image.digest)


def _serves(spec: SandboxSpec) -> _Served:
    """What is equal for those that one pool serves."""
    return spec.environment, shape_of(spec), spec.regions, spec.zone


def _same(one: PoolInfo, other: PoolInfo) -> bool:
    return replace(one, created_at=0.0) == replace(other, created_at=0.0)


def _parts(quota: Quota, used: Quota, spec: SandboxSpec) -> list[tuple[float | None, float]]:
    """What is left of each part of a quota, and what one sandbox takes of it."""
    return [
        (None if most is None else most - (taken or 0), each)
        for most, taken, each in (
            (quota.sandboxes, used.sandboxes, 1),
            (quota.cpu, used.cpu, spec.resources.cpu_limit),
            (quota.memory, used.memory, spec.resources.memory_limit),
        )
    ]
