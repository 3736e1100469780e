"""A slot in memory, as the controller's real parts see it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.actors.messages import ContainerStarted, End, SandboxStarted
from shoal.model.errors import NotFound, SandboxNotFound, ShoalError, Unavailable
from shoal.model.secrets import SecretValues
from shoal.model.spec import ContainerShape, SandboxSpec, SlotShape
from shoal.model.states import Reason

if TYPE_CHECKING:
    from tests.unit.controller_world import World

NODE = "node-1"
MACHINE = "m-1"


@dataclass
class FakeSlot:
    """A sandbox actor. `sandbox_id`: the sandbox that it holds; `end`: how that ended.

    A persistent sandbox's container is in `World.stopped` while that is stopped.

    `fails`: what its next start fails with; `mute`: nobody hears how its next start went; `dies_ending`: SIGKILL
    strikes it when it has removed its container and has not said so yet.
    """

    world: World
    id: str
    shape: SlotShape
    alive: bool = True
    sandbox_id: str | None = None
    beginning: asyncio.Task[SandboxStarted] | None = None
    end: asyncio.Future[End] | None = None
    fails: ShoalError | None = None
    mute: bool = False
    dies_ending: bool = False
    prepared: ContainerShape | None = None
    pool: str = ""
    unready_: asyncio.Future[str] | None = None

    container: ContainerStarted | None = None

    async def prepare(self, shape: ContainerShape, pool: str) -> ContainerStarted:
        assert self.sandbox_id is None, "a slot that holds a sandbox is to be made ready"
        if self.prepared is None:
            self.prepared, self.pool = shape, pool
            self.unready_ = asyncio.get_running_loop().create_future()
            self.world.prepared[self.id] = shape
            self.container = ContainerStarted(f"p-{self.id}", NODE, "127.0.0.1:1", "token", warm=True, machine=MACHINE)
            self.world.unclaimed.add(self.container.key)
        await asyncio.sleep(self.world.prepare_s)
        failure = self.world.prepare_fails
        if not self.alive or failure is not None:
            self._unprepare("it failed")
            raise failure or Unavailable("gone", actor="gone")
        assert self.container is not None
        return self.container

    async def unready(self) -> str:
        return "none" if self.unready_ is None else await asyncio.shield(self.unready_)

    async def release(self) -> None:
        self.container = None
        self._unprepare("it was given up")

    def lose_container(self) -> None:
        """Its prepared container dies."""
        self._unprepare("it died")

    def _unprepare(self, why: str) -> None:
        self.world.prepared.pop(self.id, None)
        self.world.unclaimed.discard(f"p-{self.id}")
        self.prepared = None
        if self.unready_ is not None and not self.unready_.done():
            self.unready_.set_result(why)

    async def start(self, sandbox_id: str, wanted: SandboxSpec, secrets: SecretValues | None = None) -> SandboxStarted:
        self.world.told_secrets[sandbox_id] = secrets
        assert self.sandbox_id in (None, sandbox_id), "a slot was given a second sandbox"
        if self.beginning is None:
            self.sandbox_id = sandbox_id
            self.end = asyncio.get_running_loop().create_future()
            self.beginning = asyncio.create_task(self._begin(sandbox_id))
            self.beginning.add_done_callback(self._forget_failed)
        started = await asyncio.shield(self.beginning)
        if self.mute:
            raise Unavailable("start: the actor is being restarted; try again", actor="restarting")
        return started

    async def restart(
        self, sandbox_id: str, wanted: SandboxSpec, secrets: SecretValues | None = None
    ) -> SandboxStarted:
        if self.beginning is None and sandbox_id not in {*self.world.stopped, *self.world.containers}:
            raise NotFound("no container")
        return await self.start(sandbox_id, wanted, secrets)

    def _forget_failed(self, beginning: asyncio.Task[SandboxStarted]) -> None:
        if beginning.cancelled() or beginning.exception() is not None:
            self.sandbox_id = self.beginning = self.end = None

    async def _begin(self, sandbox_id: str) -> SandboxStarted:
        warm, self.container = self.prepared is not None, None
        self._unprepare("")
        await asyncio.sleep(self.world.start_s)
        if not self.alive:
            raise Unavailable("gone", actor="gone")
        failure, self.fails = self.fails, None
        if failure is not None:
            raise failure
        self.world.starts.append(sandbox_id)
        assert sandbox_id not in self.world.containers, "a sandbox has two containers"
        key = self.world.stopped.pop(sandbox_id, f"c-{len(self.world.starts)}")
        self.world.containers[sandbox_id] = key
        resumed = sandbox_id in self.world.memories
        if resumed:
            self.world.memories.discard(sandbox_id)
            self.world.resumed.add(sandbox_id)
        return SandboxStarted(key, NODE, "127.0.0.1:1", time.time(), warm, machine=MACHINE, resumed=resumed)

    async def adopt(self, sandbox_id: str, wanted: SandboxSpec, started_at: float, key: str) -> SandboxStarted:
        if key in self.world.unclaimed:
            self.world.claim(key, sandbox_id)
        if sandbox_id not in self.world.containers:
            raise NotFound("no container")
        self.sandbox_id = sandbox_id
        self.end = asyncio.get_running_loop().create_future()
        key = self.world.containers[sandbox_id]
        return SandboxStarted(
            key, NODE, "127.0.0.1:1", started_at, warm=False, machine=MACHINE, resumed=sandbox_id in self.world.resumed
        )

    async def hold(self, sandbox_id: str, wanted: SandboxSpec, started_at: float, key: str) -> End:
        if self.sandbox_id is None and self.container is not None and self.container.key == key:
            self.sandbox_id, self.container = sandbox_id, None
            self.end = asyncio.get_running_loop().create_future()
            if key in self.world.unclaimed:
                self.world.claim(key, sandbox_id)
            else:
                self.end.set_result(End(Reason.EVICTED, None, "its container is not on the node", time.time()))
            self._unprepare("")
        return await self.ended(sandbox_id)

    async def ended(self, sandbox_id: str) -> End:
        return await asyncio.shield(self._held(sandbox_id))

    async def stop(self, sandbox_id: str, reason: Reason, message: str) -> End:
        if self.beginning is not None:
            await asyncio.wait([self.beginning])
        end = self._held(sandbox_id)
        if not end.done():
            await asyncio.sleep(self.world.remove_s)
            self.world.put_away(sandbox_id)
            if self.dies_ending:
                self.die()
                return end.result()
            end.set_result(End(reason, None, message, time.time(), kept=True))
        return end.result()

    async def terminate(self, sandbox_id: str, message: str) -> End:
        if self.beginning is not None:
            await asyncio.wait([self.beginning])
        end = self._held(sandbox_id)
        if not end.done():
            self.world.containers.pop(sandbox_id, None)
            if self.dies_ending:
                self.die()
                return end.result()
            end.set_result(End(Reason.TERMINATED, None, message, time.time()))
        return end.result()

    def hear_of_removal(self) -> None:
        """Its node has ended its container."""
        if self.dies_ending:
            self.die()
        elif self.end is not None and not self.end.done():
            self.end.set_result(End(Reason.TERMINATED, None, "its container was removed", time.time()))

    def die(self) -> None:
        """SIGKILL: its container lives on."""
        self.alive = False
        if self.unready_ is not None and not self.unready_.done():
            self.unready_.set_exception(Unavailable("gone", actor="gone"))
        if self.end is not None and not self.end.done():
            self.end.set_exception(Unavailable("gone", actor="gone"))
            self.end.exception()  # perhaps nobody waits for it

    async def wipe(self, sandbox_id: str) -> None:
        if self.sandbox_id == sandbox_id:
            self.sandbox_id = self.beginning = self.end = None

    def _held(self, sandbox_id: str) -> asyncio.Future[End]:
        if self.sandbox_id != sandbox_id or self.end is None:
            raise SandboxNotFound("not here")
        return self.end
