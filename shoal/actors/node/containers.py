"""Starts and removes the containers of a node, a few at once. The intent is on disk first, and a failed start leaves
nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from shoal.actors.engines.contract import (
    Ability,
    Container,
    ContainerSpec,
    ContainerState,
    Engine,
    EventKind,
    Mount,
    shows_processes,
)
from shoal.actors.engines.disks import disks
from shoal.actors.engines.kernel_files import start_of
from shoal.actors.messages import ContainerLoss
from shoal.actors.node.container_spec import ContainerDefaults, container_spec, size_mounts
from shoal.actors.node.losses import REMOVED, Losses, loss_by_exit, out_of_memory
from shoal.actors.node.protocols import Mounter, Network, RelayClient
from shoal.actors.node.records import ContainerRecord, RecordFiles, Stage
from shoal.model import tasks
from shoal.model.errors import FailedPrecondition, Internal, NotFound, ShoalError
from shoal.model.grants import agent_secret
from shoal.model.ids import new_container_key
from shoal.model.mounts import MountSpec
from shoal.model.spec import ContainerShape
from shoal.model.states import Reason

log = logging.getLogger("shoal.node")

_ANSWER_S = 0.015
"""Seconds that whoever asked for an end is given to be told of it, before the removal takes the machine's cores."""


@dataclass(slots=True)
class Containers:
    """The containers of one node. `records` are those that exist or are being made, by key; `mounts`: None where none
    can mount anything of the node's."""

    engine: Engine
    network: Network
    relay: RelayClient
    files: RecordFiles
    defaults: ContainerDefaults
    start_limit: int
    mounts: Mounter | None = None
    patience_s: float = 10.0  # for a removal: of a usual container it takes less than one
    records: dict[str, ContainerRecord] = field(default_factory=dict)
    losses: Losses = field(init=False)
    _turns: asyncio.Semaphore = field(init=False)
    _removals: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _doomed: set[str] = field(default_factory=set)  # being removed: a removal may fail and be retried
    _remains: set[str] = field(default_factory=set)
    _noting: asyncio.Lock = field(default_factory=asyncio.Lock)
    _turns_of: weakref.WeakValueDictionary[str, asyncio.Lock] = field(default_factory=weakref.WeakValueDictionary)

    def __post_init__(self) -> None:
        self._turns = asyncio.Semaphore(self.start_limit)
        self.losses = Losses(self.records)

    @property
    def busy(self) -> bool:
        """Whether as many starts and removals are under way as may be."""
        return self._turns.locked()

    @property
    def remains(self) -> frozenset[str]:
        """Containers in which nothing runs any more, and whose removal has failed or takes long: the sweep's work."""
        return frozenset(self._remains)

    @property
    def going(self) -> frozenset[str]:
        """Containers that are being removed, or whose removal is tried again."""
        return frozenset(self._doomed)

    def of_sandbox(self, sandbox_id: str) -> ContainerRecord | None:
        return next((r for r in self.records.values() if r.sandbox_id == sandbox_id), None)

    def serving(self, sandbox_id: str) -> ContainerRecord | None:
        """The sandbox's container, if it is ready and not being removed."""
        record = self.of_sandbox(sandbox_id)
        return record if record is not None and record.ready and record.key not in self._doomed else None

    def need(self, sandbox_id: str) -> ContainerRecord:
        """The same; `NotFound` if there is none."""
        record = self.serving(sandbox_id)
        if record is None:
            raise NotFound(f"sandbox {sandbox_id} has no container on this node")
        return record

    def lives(self, key: str) -> bool:
        """Whether it is ready, and neither lost nor being removed."""
        record = self.records.get(key)
        return record is not None and record.ready and key not in self._doomed and self.losses.of(key) is None

    def prepared_by(self, slot_id: str) -> ContainerRecord | None:
        """The container that a slot keeps ready, or is about to."""
        return next((r for r in self.prepared() if r.slot_id == slot_id and r.key not in self._doomed), None)

    def prepared(self) -> list[ContainerRecord]:
        """Those without a sandbox."""
        return [record for record in self.records.values() if record.sandbox_id is None]

    async def start(
        self,
        shape: ContainerShape,
        sandbox_id: str | None,
        slot_id: str | None = None,
        mounts: tuple[MountSpec, ...] = (),
    ) -> ContainerRecord:
        """Starts a container of `shape` with its agent, network and mounts, for a sandbox or (`slot_id`) to be kept
        ready. If it raises, nothing is left, or a sweep removes it."""
        record = ContainerRecord(new_container_key(), shape, time.time(), sandbox_id, slot_id=slot_id, mounts=mounts)
        self.records[record.key] = record
        try:
            spec = await self._prepare(record, known=False)
            return await self._bring_up(record, lambda: self.engine.start(spec))
        except BaseException:
            await asyncio.shield(self.discard(record.key))
            raise

    async def restart(self, key: str) -> ContainerRecord:
        """Starts a container that is kept again. If it raises, it is stopped as before; `NotFound` if it is gone."""
        async with self._turn_of(key):
            record = self._kept(key)
            if record.ready and self.losses.of(key) is None:
                return record
            if record.ready:
                await self._put_away(key)  # what its last run left
            try:
                record = self._kept(key)
                await self._prepare(record, known=True)
                record = await self._bring_up(record, lambda: self.engine.restart(key))
                if record.resumed:  # from here on what it does would be lost with that memory
                    await self.engine.forget_memory(key)
                return record
            except BaseException:
                await asyncio.shield(tasks.shared(self._stop_again(key), "stop container"))
                raise

    async def _prepare(self, record: ContainerRecord, *, known: bool) -> ContainerSpec:
        """Makes what the container mounts, and has the relay wait for its agent. `known`: its record is on disk; else
        that comes first."""
        run_dir, sizes = await asyncio.to_thread(self._make_sources, record, known)
        await self.relay.add(record.key)
        namespace = None if shows_processes(record.shape.runtime) else self._pin(record.key)
        return container_spec(self.defaults, record, run_dir, self.disk_point(record.key), namespace, sizes)

    def _make_sources(self, record: ContainerRecord, known: bool) -> tuple[Path, tuple[Mount, ...]]:
        if not known:
            self.files.write(record)
        secret = agent_secret(self.defaults.secret, record.key)
        return self.defaults.sources.make(record.key, secret), size_mounts(self.defaults, record.shape)

    async def _bring_up(self, record: ContainerRecord, start: Callable[[], Awaitable[Container]]) -> ContainerRecord:
        async with self._turns:
            ip = await self._attach_ahead(record)
            container = await self._start(record, start)
            record = record.but(pid=container.pid, started=start_of(container.pid))
            self.records[record.key] = record
            _, attached = await asyncio.gather(self._identify(record), self._attach(record))
            ip = ip or attached
        await self._mount(record)
        record = record.but(stage=Stage.READY, ip=ip, resumed=container.resumed)
        self.records[record.key] = record
        await self.files.put(record)
        return record

    async def _start(self, record: ContainerRecord, start: Callable[[], Awaitable[Container]]) -> Container:
        """Starts the container; what its network can have ready by then is prepared meanwhile."""
        if not _attached_once_up(record.shape):
            return await start()
        preparing = tasks.shared(self.network.prepare(record.key), "prepare network")
        try:
            return await start()
        finally:
            await asyncio.wait([preparing])  # whatever became of it, `attach` tells

    async def stop(self, key: str) -> None:
        """Stops a container that is kept. Idempotent; `NotFound`."""
        await asyncio.shield(tasks.shared(self._stop(key), "stop container"))

    async def suspend(self, key: str) -> None:
        """Stops a container that is kept, and keeps its memory: its next start goes on from there. Idempotent; if it
        raises, it runs on. `NotFound`, `FailedPrecondition`."""
        await asyncio.shield(tasks.shared(self._suspend(key), "suspend container"))

    async def _suspend(self, key: str) -> None:
        async with self._turn_of(key):
            self._kept(key)
            await self.engine.suspend(key)
            await self._stop_again(key)

    async def forget_memory(self, key: str) -> None:
        """Lets go of the memory of one that is suspended. `NotFound`."""
        async with self._turn_of(key):
            self._kept(key)
            await self.engine.forget_memory(key)

    async def stop_kept(self) -> None:
        """Stops all that are kept: after the machine was started anew, or has joined again, no slot holds them any
        more."""
        for record in [record for record in self.records.values() if record.kept and record.ready]:
            await self._stop_again(record.key)

    async def _stop(self, key: str) -> None:
        async with self._turn_of(key):
            await self._put_away(key)

    async def _finish_stop(self, key: str) -> None:
        async with self._turn_of(key):
            if (record := self.records.get(key)) is not None and record.stage is Stage.STOPPED:
                await self._stop_again(key)  # nobody has started it meanwhile

    async def _stop_again(self, key: str) -> None:
        try:
            await self._put_away(key)
        except ShoalError as error:  # the first error says more, and the sweep tries again
            log.warning("container %s is not stopped yet: %s", key, error)

    async def _put_away(self, key: str) -> None:
        """Ends what runs in a container that is kept, and takes its network away. The intent is on disk first."""
        record = self.records[key] = self._kept(key).but(stage=Stage.STOPPED, pid=0, started=0, ip=None, resumed=False)
        await self.files.put(record)
        async with self._turns:
            with contextlib.suppress(NotFound):  # somebody else removed it: its next start says so
                await self.engine.stop(key)
            await self._detach(key)
        await self.relay.remove(key)
        await asyncio.to_thread(self.defaults.sources.remove, key)
        self.losses.forget(key, ContainerLoss(Reason.STOPPED, None, "its container was stopped"))

    def _kept(self, key: str) -> ContainerRecord:
        record = self.records.get(key)
        if record is None or key in self._doomed:
            raise NotFound(f"container {key} is gone from this node")
        return record

    @contextlib.asynccontextmanager
    async def unchanged(self, key: str) -> AsyncIterator[None]:
        """Neither stops a container nor starts it again meanwhile; `NotFound` if it is gone, or not up yet."""
        async with self._turn_of(key):
            record = self.records.get(key)
            if record is None or key in self._doomed or record.stage is Stage.MAKING:
                raise NotFound(f"container {key} is gone from this node, or is not up yet")
            yield

    def _turn_of(self, key: str) -> asyncio.Lock:
        """A container is stopped and started again by one at a time."""
        turn = self._turns_of.get(key)
        if turn is None:
            turn = self._turns_of[key] = asyncio.Lock()
        return turn

    async def _attach_ahead(self, record: ContainerRecord) -> str | None:
        """Makes the network of a container whose runtime reads it when it starts."""
        if shows_processes(record.shape.runtime):
            return None
        pin = self._pin(record.key)
        await self.network.make_namespace(pin)
        return await self.network.attach(record.key, pin) if record.shape.network == "default" else None

    async def _attach(self, record: ContainerRecord) -> str | None:
        if not _attached_once_up(record.shape):
            return None
        return await self.network.attach(record.key, record.pid)

    async def _mount(self, record: ContainerRecord) -> None:
        """Puts into a container that runs what it mounts of what outlives it. Its record is on disk with that."""
        if record.mounts:
            if self.mounts is None or not shows_processes(record.shape.runtime):
                raise FailedPrecondition(
                    f"volumes: a container of {record.shape.runtime} cannot mount them", state="no_mounts"
                )
            await self.mounts.attach(record)
        for path, image in record.images.items():
            await self.engine.mount_image(record.key, image, path)

    async def _detach(self, key: str) -> None:
        await self.network.detach(key)
        record = self.records.get(key)
        if record is None or not shows_processes(record.shape.runtime):
            await self.network.remove_namespace(self._pin(key))

    def _pin(self, key: str) -> Path:
        return self.defaults.sources.top / "n" / key

    async def _identify(self, record: ContainerRecord) -> None:
        """Tells the relay which process is the container's first, beside the secret that this process has. Where the
        runtime keeps it to itself, the secret alone must do."""
        if record.started and shows_processes(record.shape.runtime):
            await self.relay.add(record.key, record.pid, record.started)

    async def expect_agent(self, key: str) -> None:
        """Has the relay wait for the agent of a container that it had cut off."""
        record = self.records[key]
        await self.relay.add(key)
        await self._identify(record)

    async def identify_all(self) -> None:
        """Tells a relay that was restarted, or a node that was, which processes are the first of their containers."""
        for record in [r for r in self.records.values() if r.key not in self._doomed and self.losses.of(r.key) is None]:
            if record.stage is Stage.STOPPED:
                continue
            try:
                await self._identify(record)
            except Internal as error:  # it may have been lost with its directory: then the next sweep finds out
                log.warning("container %s: %s", record.key, error)

    async def assign(self, key: str, sandbox_id: str, mounts: tuple[MountSpec, ...] = ()) -> ContainerRecord:
        """Gives a container that was kept ready to a sandbox, with what that mounts. Idempotent; `NotFound` if it is
        lost."""
        record = self.records.get(key)
        lost = record is None or key in self._doomed or self.losses.of(key) is not None
        if record is None or lost or not record.ready or record.sandbox_id not in (None, sandbox_id):
            raise NotFound(f"container {key} is not ready any more")
        if mounts and record.sandbox_id == sandbox_id and record.mounts == mounts:
            return record
        record = self.records[key] = record.but(sandbox_id=sandbox_id, slot_id=None, mounts=mounts)
        await self.files.put(record)
        try:
            await self._mount(record)
        except BaseException:  # or the sandbox would be taken for one that has all it mounts
            await asyncio.shield(self.discard(record.key))
            raise
        return record

    def claim(self, key: str, sandbox_id: str) -> bool:
        """Notes, in memory alone as it is about to end, whose a container is. Returns whether that was not known."""
        record = self.records[key]
        self.records[key] = record.but(sandbox_id=sandbox_id, slot_id=None)
        return record.sandbox_id is None

    async def note(self, key: str, **changes: object) -> None:
        """Records what is exposed of a container, or mounted into it. `NotFound` if it is gone or being removed."""
        async with self._noting:
            if key not in self.records or key in self._removals:
                raise NotFound("the sandbox's container is gone from this node")
            record = self.records[key] = self.records[key].but(**changes)
            await self.files.put(record)

    async def remove(self, key: str) -> None:
        """Removes the container and all that belongs to it. Idempotent; concurrent callers share one removal."""
        await asyncio.shield(self._removal(key))

    async def end(self, key: str) -> None:
        """Ends a container for those who wait for its end. It is enough that nothing runs there any more: what remains
        is removed while nobody waits or, where that fails or takes long, by the sweep."""
        if Ability.KILL in self.engine.abilities and await self._kill(key):
            tasks.shared(self._discard_soon(key), "remove container")
            return
        removal = self._removal(key)
        while True:
            await asyncio.wait([removal], timeout=self.patience_s)
            failure = removal.exception() if removal.done() else None
            if removal.done() and failure is None:
                return
            if await self._has_ended(key):
                self._remains.add(key)
                log.warning("container %s has ended, and is not removed yet: %s", key, failure or "it takes long")
                return
            if failure is not None:
                raise failure

    async def _kill(self, key: str) -> bool:
        """Whether nothing runs in it any more."""
        self._doomed.add(key)
        try:  # what is written of a volume is on its way once the files are closed
            await self.engine.kill(key, files_closed=key not in self.records or bool(self.records[key].mounts))
        except NotFound:
            return True
        except ShoalError as error:  # its removal may say more, or go better
            log.warning("container %s is not killed: %s", key, error)
            return False
        return True

    async def discard(self, key: str) -> None:
        """Removes a container for which nobody waits: now or, if that fails or takes long, at a sweep."""
        removal = self._removal(key)
        await asyncio.wait([removal], timeout=self.patience_s)
        if not removal.done() or (error := removal.exception()) is not None:
            self._remains.add(key)
            log.warning("container %s is not removed yet: %s", key, error if removal.done() else "it takes long")

    async def _discard_soon(self, key: str) -> None:
        await asyncio.sleep(_ANSWER_S)
        await self.discard(key)

    def _removal(self, key: str) -> asyncio.Task[None]:
        task = self._removals.get(key)
        if task is None:
            self._doomed.add(key)
            task = self._removals[key] = tasks.shared(self._remove(key), "remove container")
            task.add_done_callback(lambda _: self._removals.pop(key, None))
        return task

    async def _has_ended(self, key: str) -> bool:
        try:
            return (await self.engine.get(key)).state is ContainerState.EXITED
        except NotFound:
            return True
        except ShoalError:  # the engine does not answer: what runs there is not known
            return False

    async def _remove(self, key: str) -> None:
        async with self._turns:
            await self.engine.remove(key)
            await self._detach(key)
        await self.relay.remove(key)
        async with self._noting:  # or a concurrent write would bring the file back
            await asyncio.to_thread(self._remove_files, key)
            self.records.pop(key, None)
        self._doomed.discard(key)
        self._remains.discard(key)
        self.losses.forget(key, REMOVED)

    def _remove_files(self, key: str) -> None:
        self.defaults.sources.remove(key)
        self.files.drop(key)

    async def follow_events(self) -> None:
        """Turns the engine's events into losses, for ever."""
        async for event in self.engine.events(self.defaults.labels):
            if event.kind is EventKind.OUT_OF_MEMORY:
                self.losses.note(event.key, out_of_memory(self.records.get(event.key)))
            else:
                # The engine reports the exit and its cause as two events, in either order.
                with contextlib.suppress(ShoalError):
                    self.settle_exited(await self.engine.get(event.key))

    def settle_exited(self, container: Container) -> None:
        """Notes the loss of a container whose agent has ended: out of memory, killed from outside, or by a defect."""
        record = self.records.get(container.key)
        if container.state is not ContainerState.EXITED or (record is not None and record.stage is Stage.STOPPED):
            return
        if container.key in self._doomed:
            return  # by the node itself
        self.losses.note(container.key, loss_by_exit(container, record))

    async def reconcile(self) -> None:
        """Makes disk, engine and memory agree: removes containers without a record and retries failed removals; exited
        ones are lost, and those that shall be stopped are."""
        ready = [
            key for key, record in self.records.items() if record.ready
        ]  # before the engine is asked: what starts meanwhile is not taken for lost
        found = {c.key: c for c in await self.engine.list(self.defaults.labels)}
        removals = [key for key in found if key not in self.records]
        for key in ready:
            if key in found:
                self.settle_exited(found[key])
            else:
                self.losses.note(key, ContainerLoss(Reason.EVICTED, None, "its container is gone from the node"))
        for key in dict.fromkeys((*removals, *self._doomed)):
            await self.discard(key)
        for key, container in found.items():
            if container.state is not ContainerState.EXITED and self._shall_be_stopped(key):
                log.warning("container %s runs, though it was stopped", key)
                await self._finish_stop(key)
        await asyncio.to_thread(disks.sweep, self._disk_dir, self.records.copy)  # left by a crash while one was removed

    def disk_point(self, key: str) -> Path:
        """Where the engine has mounted a disk of the container's own, if it has one."""
        return self._disk_dir / key

    def _shall_be_stopped(self, key: str) -> bool:
        record = self.records.get(key)
        return record is not None and record.stage is Stage.STOPPED and not self._turn_of(key).locked()

    async def disks_gone(self) -> None:
        """Waits until the disks of removed containers are unmounted."""
        if not await asyncio.to_thread(disks.wait_until_gone, self._disk_dir):
            log.warning("disks in %s are still mounted", self._disk_dir)

    @property
    def _disk_dir(self) -> Path:
        return self.defaults.sources.top / "d"

    async def forget_unfinished(self) -> None:
        """Removes, after a restart, the containers that were being started: nobody waits for them any more."""
        for record in [r for r in self.records.values() if r.stage is Stage.MAKING]:
            await self.discard(record.key)


def _attached_once_up(shape: ContainerShape) -> bool:
    """Whether a container gets its network after its start: it has one, and its runtime does not read it before."""
    return shape.network == "default" and shows_processes(shape.runtime)
