"""The controller's parts, put together, and the loops that keep them in order."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from shoal.actors.controller.accounts import Accounts
from shoal.actors.controller.activity import Activity
from shoal.actors.controller.admission import Admission
from shoal.actors.controller.adoption import Adoption
from shoal.actors.controller.builds import Builds, StartBuilder
from shoal.actors.controller.capacity import LaunchableNodes
from shoal.actors.controller.declared_pools import DeclaredPools
from shoal.actors.controller.demand import DemandReporter
from shoal.actors.controller.event_feed import EventFeed
from shoal.actors.controller.events import EventLog
from shoal.actors.controller.forks import Forks
from shoal.actors.controller.history import History
from shoal.actors.controller.idle_slots import IdleSlots
from shoal.actors.controller.image_changes import ImageChanges
from shoal.actors.controller.image_mounts import ImageMounting
from shoal.actors.controller.image_push import ImagePush
from shoal.actors.controller.image_removal import ImageRemoval
from shoal.actors.controller.image_storage import LOOK_S, ImageStorage
from shoal.actors.controller.image_use import ImageUse
from shoal.actors.controller.image_verbs import ImageVerbs
from shoal.actors.controller.images import Images, unfinished
from shoal.actors.controller.leases import OwnerLeases
from shoal.actors.controller.machines import Machines
from shoal.actors.controller.metrics import Metrics, Present
from shoal.actors.controller.moving import Moving
from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.object_storage import OBJECTS_S, ObjectStorage
from shoal.actors.controller.overview import OverviewBook
from shoal.actors.controller.pausing import Pausing
from shoal.actors.controller.ready_slots import ReadySlots
from shoal.actors.controller.record_writer import RecordWriter
from shoal.actors.controller.recovery import Recovery
from shoal.actors.controller.registry import Registry
from shoal.actors.controller.registry_pulls import RegistryPulls
from shoal.actors.controller.rollouts import Rollouts
from shoal.actors.controller.sandboxes import Sandboxes
from shoal.actors.controller.secret_keys import SecretKeys
from shoal.actors.controller.secrets import Secrets
from shoal.actors.controller.sign_ins import SignIns
from shoal.actors.controller.slot_maker import SlotMaker
from shoal.actors.controller.slot_stock import SlotStock
from shoal.actors.controller.slots import SlotPool
from shoal.actors.controller.snapshots import Snapshots
from shoal.actors.controller.starting import Starting
from shoal.actors.controller.store import Store
from shoal.actors.controller.stored_image_sweep import SWEEP_S, StoredImageSweep
from shoal.actors.controller.supervisor import SandboxSupervisor
from shoal.actors.controller.tunnels import Tunnels
from shoal.actors.controller.usage_accounts import EVERY_S as USAGE_S
from shoal.actors.controller.usage_accounts import HOUR_S, UsageAccounts
from shoal.actors.controller.volume_files import VolumeFiles
from shoal.actors.controller.volume_uses import VolumeUses
from shoal.actors.controller.volume_versions import VolumeVersions
from shoal.actors.controller.volumes import SWEEP_S as VOLUMES_S
from shoal.actors.controller.volumes import Volumes
from shoal.actors.handles import call
from shoal.actors.messages import Drained
from shoal.actors.volumes import VolumeKeeper
from shoal.model import tasks
from shoal.model.access import INSIDE, AuditEntry, Caller
from shoal.model.images import ImageState
from shoal.model.info import NodeInfo
from shoal.model.metrics import Series
from shoal.model.overview import POINT_S
from shoal.model.settings import Settings
from shoal.model.spec import SlotShape

log = logging.getLogger("shoal.controller")

SECRET_KEYS = "secrets.keys"
"""The file of the keys of secrets, in the state directory."""

_TEND_S = 1.0
_LOOK_S = 1.0
_LOOK_WAITING_S = 0.5
"""How soon a new machine has its node actor, in general and while sandboxes wait for room: they wait for that, too."""
_ASK_S = 5.0
_EXPIRE_S = 60.0
_FIRST_ANSWERS_S = 5.0

END_ALL_S = 40.0
CLOSE_NODE_S = 30.0
"""Seconds that all sandboxes have to end, and then each node to close: together less than `shoal down` waits."""

Call = Callable[..., Awaitable[Any]]


@dataclass(slots=True)
class Parts:
    """The parts of an open controller."""

    settings: Settings
    store: Store
    nodes: Nodes
    pool: SlotPool
    ready: ReadySlots
    declared_pools: DeclaredPools
    registry: Registry
    writer: RecordWriter
    supervisor: SandboxSupervisor
    admission: Admission
    accounts: Accounts
    sandboxes: Sandboxes
    starting: Starting
    pausing: Pausing
    tunnels: Tunnels
    sign_ins: SignIns
    event_feed: EventFeed
    metrics: Metrics
    overview_book: OverviewBook
    usage_accounts: UsageAccounts
    leases: OwnerLeases
    demand: DemandReporter
    recovery: Recovery
    machines: Machines
    images: ImageVerbs
    image_removal: ImageRemoval
    snapshots: Snapshots
    image_mounts: ImageMounting
    forks: Forks
    objects: ObjectStorage
    builds: Builds
    image_push: ImagePush
    image_storage: ImageStorage
    image_sweep: StoredImageSweep
    secrets: Secrets
    registry_pulls: RegistryPulls
    volumes: Volumes
    volume_uses: VolumeUses
    volume_files: VolumeFiles
    volume_versions: VolumeVersions
    rollouts: Rollouts
    _loops: list[asyncio.Task[None]] = field(default_factory=list)
    _asked: float = float("-inf")
    _looked: float = float("-inf")
    _joined: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self) -> None:
        """The loops."""
        self.nodes.on_lost = self._lose_node
        self.nodes.on_joined = self._note_joined
        self.pausing.restore(self.registry.live())
        self.image_mounts.restore(self.registry.live())
        self._loops = [
            tasks.supervise(self._keep_tending, "tend slots"),
            tasks.supervise(self.ready.run, "keep pools"),
            tasks.supervise(self.image_removal.run, "remove images"),
            tasks.repeat(_LOOK_WAITING_S, self._refresh_nodes, "refresh nodes"),
            tasks.repeat(_EXPIRE_S, self._expire, "expire"),
            tasks.repeat(_TEND_S, self._end_unowned, "end unowned"),
            tasks.repeat(_TEND_S, self._restart_stopped, "restart stopped"),
            tasks.repeat(POINT_S, self.overview_book.turn, "close an interval"),
            tasks.repeat(USAGE_S, self.usage_accounts.turn, "account"),
            tasks.repeat(OBJECTS_S, self.objects.tend, "keep the object storage"),
            tasks.repeat(LOOK_S, self.image_storage.turn, "store images"),
            tasks.repeat(SWEEP_S, self.image_sweep.turn, "sweep stored images"),
            tasks.repeat(VOLUMES_S, self.volumes.sweep, "sweep volumes"),
            tasks.repeat(VOLUMES_S, self.volume_uses.turn, "measure volumes"),
        ]

    async def stop(self) -> None:
        """Ends the loops and closes the store, as SIGKILL would: what it has started runs on."""
        await tasks.stop(*self._loops)
        await self.writer.close()

    async def drain(self) -> Drained:
        """Ends every sandbox, but stops the persistent ones; removes every slot, closes every node and, in any case,
        the store. Nothing that fails or takes too long holds up the rest."""
        self.admission.closed = True
        living = self.registry.live()
        try:
            async with asyncio.timeout(END_ALL_S):
                ending = (
                    self.starting.shut_down(record)
                    if record.has_disk
                    else self.supervisor.terminate(record, "the cluster was shut down", INSIDE)
                    for record in living
                )
                await asyncio.gather(*ending, return_exceptions=True)
        except TimeoutError:
            log.warning("%d sandboxes have not ended", sum(not record.ended for record in living))
        try:
            await tasks.stop(*self._loops)
            self.recovery.close()
            self.ready.close()
            self.pool.close()
            failed = await self.nodes.close(CLOSE_NODE_S)
        finally:
            await self.writer.close()
        for failure in failed:
            log.warning("node %s is not closed: %s", failure.node_id[:8], failure.error)
        return Drained(sum(record.ended for record in living), tuple(failed))

    def let_go_image(self, digest: str) -> None:
        """An image is about to go: nothing is made ready of it any more."""
        if all(record.state is ImageState.GOING for record in self.images.images.of_digest(digest)):
            self.ready.forget_image(digest)
        self.image_removal.wake()

    async def report(
        self, audit: Sequence[AuditEntry], counters: Mapping[Series, float], used: Mapping[str, float]
    ) -> None:
        """Takes in what a replica reports. The counters last: whatever fails before, the replica reports all of it
        again."""
        await self.event_feed.report(audit, used)
        self.metrics.report(counters)

    async def node_infos(self, caller: Caller) -> list[NodeInfo]:
        """The nodes of the cluster."""
        return await self.nodes.infos()

    def defaults(self, caller: Caller) -> dict[str, Any]:
        """What a sandbox gets when its creator does not say."""
        return self.settings.sandbox.model_dump()

    def collect_metrics(self, caller: Caller) -> dict[Series, float]:
        """The cluster's metrics."""
        now = self.pool.stock.clock()
        return self.metrics.snapshot(
            Present(
                living=self.registry.live(),
                nodes=self.nodes.known_nodes(),
                ledger=self.pool.stock.ledger.nodes,
                cordoned=self.nodes.cordons.keys(),
                waiting=[(why, where, count, now - since) for why, where, count, since in self.pool.waiting_callers()],
                idle_slots=len(self.pool.idle),
                last_event=self.writer.events.last,
                pools=self.ready.figures(),
            )
        )

    async def _keep_tending(self) -> None:
        """Every second, and at once where a machine has joined."""
        while True:
            await self._tend_slots()
            with suppress(TimeoutError):
                async with asyncio.timeout(_TEND_S):
                    await self._joined.wait()
            self._joined.clear()

    def _note_joined(self, node_id: str) -> None:
        self.pool.stock.unsure = True
        self._joined.set()

    async def _tend_slots(self) -> None:
        self.demand.look(self.demand.clock())
        await self.pool.tend()
        await self.machines.cordon_suspects()

    async def _refresh_nodes(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_S and not self.pool.has_waiting:
            return
        self._looked = now
        new_only = now - self._asked < _ASK_S
        if not new_only:
            self._asked = now
        await self.nodes.refresh(new_only=new_only)
        await self.machines.forget_gone()

    def _lose_node(self, node_id: str) -> None:
        log.warning("node %s is lost", node_id[:8])
        tasks.supervise(partial(self.supervisor.lose_node, node_id), "lose node")

    async def _end_unowned(self) -> None:
        for record in self.leases.expired(self.registry.live()):
            message = f"owner lease: its creator has not renewed it for {record.spec.owner_lease:g} s"
            tasks.supervise(partial(self.supervisor.terminate, record, message, INSIDE), "end unowned")

    async def _restart_stopped(self) -> None:
        self.starting.restart_due(self.registry.resting(), time.time())

    async def _expire(self) -> None:
        before = time.time() - self.settings.store.retention
        self.registry.expire(before)
        self.accounts.expire(before)
        self.writer.events.expire(before)
        await self.writer.expire(before)
        await self.writer.expire_usage(int((time.time() - self.settings.store.usage_retention) // HOUR_S))


async def open_parts(
    settings: Settings,
    secret: bytes,
    store: Store,
    nodes: Nodes,
    maker: SlotMaker,
    overtaken: Callable[[], None],
    call: Call = call,
    *,
    objects: ObjectStorage,
    start_builder: StartBuilder | None = None,
    keeper: VolumeKeeper | None = None,
) -> Parts:
    """Opens the store, resumes what an earlier controller left, and starts the loops. `secret`: the cluster's;
    `overtaken`: called when another controller has opened the store; `call`: how actors are called;
    `objects`: where images are kept for all nodes; `start_builder`: starts what builds images, None where there can be
    none; `keeper`: of volumes, the same."""
    restored = await store.open(nodes.cluster, settings.limits.history)
    nodes.cordons = {cordon.node_id: cordon for cordon in restored.cordons}
    nodes.epoch, nodes.on_overtaken = restored.epoch, overtaken
    await nodes.refresh(wait_s=_FIRST_ANSWERS_S)
    defaults = settings.sandbox
    activity = Activity(time.time())
    metrics = Metrics(activity)
    leases = OwnerLeases()
    writer = RecordWriter(store, EventLog(restored.last_event), overtaken)
    registry = Registry(settings.limits.history)
    history = History(registry, store)
    default_shape = SlotShape(defaults.cpu_request, defaults.memory_request)
    launchable = LaunchableNodes()
    kept = Images(unfinished(record) for record in restored.images)
    use = ImageUse(kept, registry, nodes)
    image_changes = ImageChanges(kept, use, writer)
    pool = SlotPool(SlotStock(maker, nodes, launchable), IdleSlots(settings.pools, default_shape))
    ready = ReadySlots(pool, maker, nodes, settings.pools, call)
    pool.spare, ready.has_memory = ready, use.has_memory
    pool.stock.nodes_with, pool.stock.nodes_near = use.nodes_with, use.nodes_near
    await pool.refresh()
    supervisor = SandboxSupervisor(registry, writer, pool, ready, Adoption(pool, maker, nodes, call), metrics, call)
    accounts = Accounts(writer, registry)
    admission = Admission(settings.limits, registry, accounts, nodes, use, launchable, supervisor.check_room)
    keys = SecretKeys(settings.state_dir / SECRET_KEYS, settings.secrets.key_command)
    secrets = Secrets(writer, registry, accounts, keys, secret)
    supervisor.launcher.secret_values = supervisor.persistence.secret_values = secrets.values_for
    images = ImageVerbs(kept, use, image_changes, accounts)
    sandboxes = Sandboxes(
        secret, registry, history, admission, supervisor, nodes, writer, metrics, leases, secrets, call
    )
    snapshots = Snapshots(kept, image_changes, history, nodes, settings.limits, call)
    image_storage = ImageStorage(kept, image_changes, nodes, settings.objects.bucket is not None, call)
    pausing = Pausing(history, supervisor, nodes, writer, call)
    use.can_be_stored = image_storage.can_store
    supervisor.moving = Moving(snapshots, image_storage, image_changes, writer, supervisor.adoption)
    supervisor.persistence.movable = image_storage.gives_away
    declared_pools = DeclaredPools(writer, registry, accounts, admission, ready, settings.limits)
    declared_pools.admitted = secrets.admitted
    volumes = Volumes(keeper, objects, registry, accounts, nodes, writer, settings.volumes, call)
    volumes.restore(restored)
    accounts.volumes_in = volumes.count
    accounts.volumes_hold = volumes.held_at_most
    admission.volumes_of = volumes.held
    admission.nodes_mounting = pool.stock.nodes_mounting = volumes.nodes_mounting
    parts = Parts(
        settings=settings,
        store=store,
        nodes=nodes,
        pool=pool,
        ready=ready,
        declared_pools=declared_pools,
        registry=registry,
        writer=writer,
        supervisor=supervisor,
        admission=admission,
        accounts=accounts,
        sandboxes=sandboxes,
        starting=Starting(sandboxes, history, admission, supervisor, writer, pausing),
        pausing=pausing,
        sign_ins=SignIns(secret),
        tunnels=Tunnels(history, writer, nodes, secret, settings.api, call),
        event_feed=EventFeed(writer, registry, history, accounts, store),
        metrics=metrics,
        overview_book=OverviewBook(registry, nodes, pool, accounts, activity),
        usage_accounts=UsageAccounts(store, writer, nodes, history, accounts, call),
        leases=leases,
        demand=DemandReporter(pool, supervisor, nodes, launchable, ready, image_storage.gives_away),
        recovery=Recovery(registry, supervisor, pool, ready, maker),
        machines=Machines(nodes, supervisor, pool, writer),
        images=images,
        image_removal=ImageRemoval(kept, images, image_changes, nodes, settings, call),
        snapshots=snapshots,
        image_mounts=ImageMounting(history, use, nodes, writer, call),
        forks=Forks(sandboxes, history, snapshots, image_changes),
        objects=objects,
        builds=Builds(kept, use.note_used, accounts, nodes, secrets.sealed, call, start_builder),
        image_push=ImagePush(images, nodes, writer, call),
        image_storage=image_storage,
        image_sweep=StoredImageSweep(kept, image_storage, objects),
        secrets=secrets,
        registry_pulls=RegistryPulls(
            kept, image_changes, use.note_used, accounts, secrets, nodes, settings.limits, call
        ),
        volumes=volumes,
        volume_uses=VolumeUses(volumes, accounts),
        volume_files=VolumeFiles(volumes, sandboxes, settings),
        volume_versions=VolumeVersions(volumes, sandboxes),
        rollouts=Rollouts(accounts),
    )
    image_changes.going = parts.let_go_image
    ready.may_make = lambda: parts.recovery.complete
    ready.starts = lambda: supervisor.launcher.starting
    await accounts.restore(restored)
    secrets.restore(restored)
    await parts.usage_accounts.restore()
    parts.declared_pools.restore(restored)
    await parts.recovery.run(restored.sandboxes)
    registry.complete = registry.complete and restored.complete
    parts.start()
    return parts
