"""The node actor: what the controller and the slots call on one machine, and the loops that keep it in order.

It may die at any moment. What it needs after a restart is on disk (`records.py`), in the engine, and in the relay,
which outlives it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import ray

from shoal.actors.core_files import leave_no_core_file
from shoal.actors.handles import Carrying
from shoal.actors.messages import OVERTAKEN, ContainerLoss, ContainerStarted, NodeImage
from shoal.actors.names import REGION_LABEL
from shoal.actors.node import image_mounts, pausing, suspending, unknown
from shoal.actors.node.losses import REMOVED
from shoal.actors.node.records import ContainerRecord, Stage
from shoal.actors.node.starts import ContainerStarts
from shoal.actors.volumes import VersionChange
from shoal.model import grants, tasks
from shoal.model import machine as machine_file
from shoal.model.errors import FailedPrecondition, Unavailable
from shoal.model.info import NodeInfo
from shoal.model.mounts import MountSpec
from shoal.model.spec import ContainerShape, SandboxSpec

if TYPE_CHECKING:
    from shoal.actors.node.wiring import NodeParts
    from shoal.model.metrics import Series
    from shoal.model.usage import SandboxLoad, SandboxUsage, UsageReport

log = logging.getLogger("shoal.node")

_WATCH_S = 60.0
_AGAIN_S = 1.0
_REMOVE_ALL_S = 15.0


class NodeActor(Carrying):
    """One machine's part of the cluster. The controller creates it with `names.node_options`. All methods are
    idempotent."""

    def __init__(self, settings: dict[str, Any], cluster: str, secret: bytes) -> None:
        # Not at the top: every slot loads this module when it looks the actor up, and must stay small.
        from shoal.actors.node import wiring
        from shoal.model import telemetry
        from shoal.model.settings import Settings

        self._wiring = wiring
        machine = machine_file.read()
        self._settings = Settings.from_dict(settings if machine is None else machine.over(settings))
        self._machine = None if machine is None else machine.name
        leave_no_core_file()
        telemetry.begin(self._settings.telemetry, "node", **{"host.name": wiring.hostname()})
        self._cluster = cluster
        self._secret = secret
        context = ray.get_runtime_context()
        self._node_id = context.get_node_id()
        self._region = cast("dict[str, str]", context.get_node_labels()).get(REGION_LABEL)
        self._parts: NodeParts | None = None
        self._opening: asyncio.Task[NodeParts] | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._starts = ContainerStarts()
        self._epoch = 0

    # -- what the controller calls ------------------------------------------------------------------

    async def info(self, epoch: int = 0) -> NodeInfo:
        """The node's capacity and what it holds. `epoch`: the controller's, which is refused once a later one has
        asked: it may have no other way to learn that Ray took it for dead."""
        if epoch < self._epoch:
            raise FailedPrecondition("another controller is the cluster's now", state=OVERTAKEN)
        self._epoch = epoch
        parts = await self._open()
        records = parts.containers.records.values()
        total_cpu, total_memory = self._wiring.machine_size()
        used = await asyncio.to_thread(parts.meter.look)
        return NodeInfo(
            id=self._node_id,
            address=parts.relay.address,
            fingerprint=parts.relay.fingerprint,
            hostname=self._wiring.hostname(),
            region=self._region,
            engine=parts.engine.name,
            runtimes=parts.engine.runtimes,
            alive=True,
            sandboxes=sum(1 for r in records if _counts(r) and r.key not in parts.containers.remains),
            warm=parts.prepared.count,
            cpu_total=total_cpu,
            cpu_free=total_cpu,
            memory_total=total_memory,
            memory_free=total_memory,
            pids=self._wiring.most_pids(self._settings),
            disk_total=await asyncio.to_thread(self._wiring.disk_size, self._settings),
            disk_limit="watch" if self._wiring.needs_disk_watch(parts.engine) else "kernel",
            remains=len(parts.containers.remains),
            stopped=sum(1 for r in records if r.stage is Stage.STOPPED),
            machine=parts.machine,
            fetches_images=parts.images.transfer is not None,
            mounts=len(mounts := parts.mounts.states()),
            mounts_still=len(still := tuple(each.identity for each in mounts if each.still_s)),
            still=still,
            cpu_used=used.cpu,
            memory_used=used.memory,
            disk_used=used.disk,
        )

    async def close_off(self, addresses: Sequence[str], complete: bool) -> list[str]:
        """Closes the addresses of the cluster's nodes to the sandboxes here, and returns this machine's own.
        `complete`: no others stay closed from before."""
        parts = await self._open()
        await parts.network.close_off(addresses, replace=complete)
        return await asyncio.to_thread(self._wiring.own_addresses)

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """Removes the container that the sandbox has here, or is about to have."""
        parts = await self._open()
        record = await self._starts.record_of(parts, sandbox_id)
        if record is not None:
            await self._end(parts, record.key)

    async def stop_sandbox(self, sandbox_id: str) -> None:
        """Stops the container of a persistent sandbox that no slot holds, if it is here."""
        parts = await self._open()
        record = await self._starts.record_of(parts, sandbox_id)
        if record is not None:
            await self._stop(parts, record.key)

    async def suspend_sandbox(self, sandbox_id: str) -> None:
        """Saves the memory of a persistent sandbox and stops its container. Idempotent; if it raises, it runs on.
        `NotFound`, `FailedPrecondition`."""
        parts = await self._open()
        await suspending.suspend(parts, await self._starts.record_of(parts, sandbox_id))

    async def undo_restart(self, sandbox_id: str) -> bool:
        """Stops the container of a persistent sandbox whose start came to nothing; one that went on from memory is
        suspended again. Whether what memory it had is kept."""
        parts = await self._open()
        return await suspending.undo_restart(parts, await self._starts.record_of(parts, sandbox_id))

    async def forget_memory(self, sandbox_id: str) -> None:
        """Lets go of the memory of a suspended sandbox, if it is here."""
        parts = await self._open()
        record = await self._starts.record_of(parts, sandbox_id)
        if record is not None:
            await parts.containers.forget_memory(record.key)

    async def pause_sandbox(self, sandbox_id: str) -> None:
        """Freezes the sandbox's container. Idempotent; `NotFound`, `FailedPrecondition` where the engine cannot."""
        await pausing.pause((await self._parts_for(sandbox_id)).containers, sandbox_id)

    async def resume_sandbox(self, sandbox_id: str) -> None:
        """Lets it go on. Idempotent; `NotFound`."""
        parts = await self._parts_for(sandbox_id)
        await pausing.resume(parts.containers, parts.ports, sandbox_id)

    async def snapshot_sandbox(self, sandbox_id: str, image_id: str, config: Mapping[str, Any] | None) -> NodeImage:
        """Makes an image of the sandbox's files, with the defaults in `config` (None: those of the image below)."""
        return await (await self._parts_for(sandbox_id)).images.snapshot(sandbox_id, image_id, config)

    async def snapshot_directory(self, sandbox_id: str, image_id: str, path: str) -> NodeImage:
        """Makes an image of one of the sandbox's directories."""
        return await (await self._parts_for(sandbox_id)).images.snapshot_directory(sandbox_id, image_id, path)

    async def mount_image(self, sandbox_id: str, image: str, path: str) -> None:
        """Mounts an image into the sandbox's container; see `image_mounts.mount`."""
        parts = await self._parts_for(sandbox_id)
        await image_mounts.mount(parts.containers, parts.images, sandbox_id, image, path)

    async def unmount_image(self, sandbox_id: str, path: str) -> None:
        """Takes one away. Idempotent; `NotFound`."""
        await image_mounts.unmount((await self._parts_for(sandbox_id)).containers, sandbox_id, path)

    async def checkpoint_sandbox(self, sandbox_id: str, image_id: str) -> NodeImage:
        """Makes an image of the sandbox's files and memory."""
        return await (await self._parts_for(sandbox_id)).images.checkpoint(sandbox_id, image_id)

    async def find_image(self, image: str, pull: bool) -> NodeImage | None:
        """What the engine has by that reference; None if it is not here and not to be pulled. `ImageNotFound`."""
        return await (await self._open()).images.find(image, pull)

    async def pull_image(self, reference: str, image_id: str, username: str, password: str) -> NodeImage:
        """Pulls an image of a registry with credentials, under the name of an image of the cluster alone."""
        return await (await self._open()).images.pull(reference, image_id, username, password)

    async def push_image(self, digest: str, reference: str) -> str:
        """Sends an image to a registry; the digest by which that knows it."""
        return await (await self._open()).engine.images.push(digest, reference)

    async def store_image(self, digest: str, again: bool = False) -> None:
        """Puts an image of this node into the object storage; returns once all of it is there. `again`: though it seems
        to be."""
        await (await self._open()).images.put(digest, again)

    async def remove_image(self, image_id: str) -> None:
        """Removes an image of the cluster; `FailedPrecondition` if a container uses it."""
        await (await self._open()).images.remove(image_id)

    async def read_log(self, sandbox_id: str, fd: int, offset: int) -> tuple[int, bytes, bool]:
        """Output kept after the sandbox's end: (offset, bytes, whether they are the last)."""
        parts = await self._open()
        return await asyncio.to_thread(parts.logs.read, sandbox_id, fd, offset)

    async def sandbox_usage(self, sandbox_id: str, since: float | None) -> SandboxUsage:
        """What a sandbox that runs here uses, or used when it ended."""
        return await (await self._open()).usage.usage(sandbox_id, since)

    async def sandbox_loads(self) -> list[SandboxLoad]:
        """What the sandboxes that run here used when they were looked at last."""
        return (await self._open()).usage.meter.loads()

    async def usage_report(self) -> UsageReport:
        """What the sandboxes here used since the last report that was confirmed; the same again until it is."""
        return (await self._open()).usage.meter.report()

    async def confirm_usage(self, number: int) -> None:
        """The report of that number is counted."""
        (await self._open()).usage.meter.confirm(number)

    async def series(self) -> dict[Series, float]:
        """What the programs of this node have counted, for the cluster's metrics."""
        return await self._wiring.node_series(await self._open())

    async def expose(self, sandbox_id: str, port: int, private: bool, listen: int = 0) -> str:
        """The address (`host:port`) of this node that leads to `port` in the sandbox; see `ExposedPorts.expose`."""
        parts = await self._parts_for(sandbox_id)
        return await parts.ports.expose(sandbox_id, port, private, listen)

    async def unexpose(self, sandbox_id: str, port: int) -> None:
        """Closes the exposed port and the connections through it. Idempotent."""
        parts = await self._open()
        await parts.ports.unexpose(sandbox_id, port)

    async def open_gateway(self) -> None:
        """Makes sure that this node's gateway runs: the API is served here from now on."""
        await (await self._open()).gateway.open()

    async def roll_gateway(self) -> None:
        """Replaces the gateway by one of the binary that is installed now, and with the certificate of now."""
        parts = await self._open()
        await parts.gateway.roll(await asyncio.to_thread(self._wiring.install_agent, self._settings))

    async def close(self) -> None:
        """Removes every container, the network and the relay, so that the machine is as it was before; persistent
        sandboxes are stopped, and their disks stay. It raises what could not be removed, once the rest is."""
        parts = await self._open()
        await tasks.stop(*self._loops)
        self._loops.clear()
        try:
            async with asyncio.timeout(_REMOVE_ALL_S):
                making = parts.prepared.making
                await asyncio.gather(self._starts.settle(), *making.values(), return_exceptions=True)
                ends = (
                    parts.containers.stop(key) if record.kept else parts.containers.remove(key)
                    for key, record in list(parts.containers.records.items())
                )
                await asyncio.gather(*ends, return_exceptions=True)
                await parts.containers.reconcile()  # which tries again
            left = [key for key, record in parts.containers.records.items() if record.stage is not Stage.STOPPED]
            if left:
                raise Unavailable(f"not removed: the containers {', '.join(left)}")
        except TimeoutError:
            raise Unavailable(f"removing its containers took longer than {_REMOVE_ALL_S:g} s") from None
        finally:
            self._parts = None
            await parts.close()

    # -- what a slot calls --------------------------------------------------------------------------

    async def start_container(self, sandbox_id: str, spec: SandboxSpec) -> ContainerStarted:
        """Gives the sandbox a container: the one that it has, or a new one."""
        parts = await self._open()
        return self._started(parts, await self._starts.start(parts, sandbox_id, spec), warm=False)

    async def restart_container(self, sandbox_id: str) -> ContainerStarted:
        """Starts the container of a persistent sandbox that was stopped here; `NotFound` if it is gone."""
        parts = await self._open()
        return self._started(parts, await self._starts.restart(parts, sandbox_id), warm=False)

    async def prepare_container(self, slot_id: str, shape: ContainerShape) -> ContainerStarted:
        """Starts a container that the slot keeps ready: the one that it has, or a new one. Sandboxes come first."""
        parts = await self._open()
        record = await parts.prepared.prepare(slot_id, shape)
        parts.watch_disk(record)
        return self._started(parts, record, warm=True)

    async def hurry_container(self, slot_id: str) -> None:
        """A sandbox waits for the container that is being prepared for this slot: nothing else comes first."""
        (await self._open()).prepared.hurry(slot_id)

    async def assign_container(self, key: str, sandbox_id: str, mounts: tuple[MountSpec, ...] = ()) -> ContainerStarted:
        """Gives a sandbox the container that its slot kept ready, with what the sandbox mounts; `NotFound` if it is
        lost."""
        parts = await self._open()
        record = await parts.containers.assign(key, sandbox_id, mounts)
        parts.usage.begin(sandbox_id)
        return self._started(parts, record, warm=True)

    async def commit_mount(self, identity: str) -> bool:
        """Returns once what was written and closed through a mount of this node is durable and seen elsewhere; False
        where it is not mounted here."""
        parts = await self._open()
        return await parts.mounts.commit(identity)

    async def change_versions(self, volume_id: str, change: VersionChange) -> None:
        """Makes, restores or removes versions of a volume, which this node mounts for that."""
        await (await self._open()).mounts.change_versions(MountSpec("/", volume=volume_id), change)

    async def let_go_mount(self, identity: str) -> None:
        """Unmounts what no container of this node uses any more; `FailedPrecondition` where one does."""
        await (await self._open()).mounts.let_go(identity)

    async def release_containers(self, slot_ids: Sequence[str]) -> None:
        """Removes what slots kept ready, or are about to."""
        await (await self._open()).prepared.release(slot_ids)

    async def container_of(self, sandbox_id: str) -> ContainerStarted:
        """The sandbox's container here; `NotFound` if it has none."""
        parts = await self._open()
        return self._started(parts, parts.containers.need(sandbox_id), warm=False)

    async def watch_container(self, key: str) -> ContainerLoss | None:
        """Waits until the container is lost, and returns how; None after a minute."""
        parts = await self._open()
        try:
            async with asyncio.timeout(_WATCH_S):
                return await parts.containers.losses.watch(key)
        except TimeoutError:
            return None

    async def stop_container(self, key: str) -> None:
        """Stops the container of a persistent sandbox; `NotFound`."""
        await self._stop(await self._open(), key)

    async def remove_container(self, key: str) -> None:
        """Kills and removes a container; returns once nothing runs there any more. What can't be removed by then is the
        sweep's work."""
        await self._end(await self._open(), key)

    async def end_container(self, key: str, sandbox_id: str) -> bool:
        """As `remove_container`, for the controller: the slot hears of it as of a loss. False, and nothing is done,
        where the container is lost or on its way out already: then the slot knows why. `sandbox_id`: whose it is,
        which its slot may not have told yet."""
        parts = await self._open()
        if not parts.containers.lives(key):
            return False
        if parts.containers.claim(key, sandbox_id):
            parts.usage.begin(sandbox_id)
        await self._end(parts, key)
        parts.containers.losses.note(key, REMOVED)
        return True

    async def save_log(self, sandbox_id: str, fd: int, offset: int, data: bytes) -> None:
        """Keeps output of a sandbox's command, to be read after its end."""
        parts = await self._open()
        await asyncio.to_thread(parts.logs.save, sandbox_id, fd, offset, data)
        if parts.shipping is not None:
            await parts.shipping.finish(sandbox_id, fd, offset, data)

    async def follow_output(self, sandbox_id: str) -> None:
        """The command of a sandbox here has just started: its output is to be sent on."""
        parts = await self._open()
        if parts.shipping is not None:
            await parts.shipping.begin(sandbox_id)

    # -- inside -------------------------------------------------------------------------------------

    async def _open(self) -> NodeParts:
        """The parts, opened by the first call after each start of the actor (whose constructor can't wait)."""
        if self._parts is not None:
            return self._parts
        if self._opening is None:
            self._opening = tasks.shared(self._do_open(), "open node")
        opening = self._opening
        try:
            return await asyncio.shield(opening)
        finally:
            if opening.done() and self._opening is opening:
                self._opening = None  # where it failed, the next call tries again

    async def _parts_for(self, sandbox_id: str) -> NodeParts:
        """The parts, once the sandbox is known to have its container here, or seems not to."""
        parts = await self._open()
        await parts.prepared.told(sandbox_id)
        return parts

    async def _do_open(self) -> NodeParts:
        address = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        parts = await self._wiring.open_node(
            self._settings, self._cluster, self._machine, self._secret, address, self._node_id
        )
        parts.disk_watch.on_exceeded = parts.containers.losses.note_full_disk
        parts.prepared.has_creates = lambda: bool(self._starts)
        for record in parts.containers.records.values():
            parts.watch_disk(record)
        self._parts = parts
        every = self._settings.node.sweep_interval
        self._loops = [
            tasks.repeat(_AGAIN_S, parts.containers.follow_events, "events"),
            tasks.repeat(_AGAIN_S, parts.disk_watch.run, "disk"),
            tasks.repeat(every, lambda: self._sweep(parts), "sweep"),
            tasks.repeat(self._wiring.MOUNTS_EVERY_S, parts.mounts.tend, "keep mounts"),
            tasks.repeat(self._wiring.USAGE_EVERY_S, parts.usage.turn, "usage"),
            tasks.repeat(self._wiring.IMAGES_EVERY_S, lambda: self._sweep_images(parts), "sweep images"),
        ]
        return parts

    async def _stop(self, parts: NodeParts, key: str) -> None:
        self._forget(parts, key)
        await parts.containers.stop(key)

    def _started(self, parts: NodeParts, record: ContainerRecord, warm: bool) -> ContainerStarted:
        token = grants.sign(
            self._secret,
            record.sandbox_id or "",
            record.key,
            (grants.SCOPE_EXEC, grants.SCOPE_FILES, grants.SCOPE_ADMIN),
            time.time() + grants.TTL_S,
        )
        took = self._starts.take_steps(record.key)
        ships = parts.shipping is not None
        relay = parts.relay.endpoint
        return ContainerStarted(
            record.key, self._node_id, relay, token, warm, parts.machine, took, ships, record.resumed
        )

    async def _end(self, parts: NodeParts, key: str) -> None:
        self._forget(parts, key)
        await parts.containers.end(key)

    async def _discard(self, parts: NodeParts, key: str) -> None:
        """Removes a container for which nobody waits: a failure is logged, and the next sweep tries again."""
        self._forget(parts, key)
        await parts.containers.discard(key)

    def _forget(self, parts: NodeParts, key: str) -> None:
        parts.forget(key)
        self._starts.take_steps(key)

    async def _sweep_images(self, parts: NodeParts) -> None:
        await parts.images.sweep(unknown.images)

    async def _sweep(self, parts: NodeParts) -> None:
        """Removes containers that no living sandbox owns, finds losses that no event reported, and restores the
        network's rules."""
        await parts.containers.reconcile()
        await parts.network.verify()
        await parts.prepared.sweep()
        await asyncio.to_thread(parts.logs.sweep, self._settings.limits.history_age)
        records = parts.containers.records.values()
        if parts.shipping is not None:
            await parts.shipping.sweep({record.sandbox_id for record in records if record.sandbox_id})
        going = parts.containers.going  # of those that have ended just now
        owned = {
            r.sandbox_id: r.key for r in records if r.sandbox_id and r.stage is not Stage.MAKING and r.key not in going
        }
        for sandbox_id in await unknown.sandboxes(list(owned), self._node_id) if owned else ():
            log.warning("sandbox %s is no longer known to be alive: removing its container", sandbox_id)
            await self._discard(parts, owned[sandbox_id])


def _counts(record: ContainerRecord) -> bool:
    return record.sandbox_id is not None and record.stage is not Stage.STOPPED
