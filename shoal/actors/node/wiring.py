"""Opens the parts of a node and puts them together."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import os
import platform
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

import psutil

from shoal.actors import inherited_settings
from shoal.actors.engines import cgroup_parent
from shoal.actors.engines.catalogue import engine_named
from shoal.actors.engines.contract import Ability, Engine
from shoal.actors.garbage import spare_what_stays
from shoal.actors.handles import call, find_actor
from shoal.actors.names import CLUSTER_LABEL, NODE_LABEL, network_owner
from shoal.actors.network import SandboxNetwork
from shoal.actors.node import kernel_counts
from shoal.actors.node.container_spec import DEADLINE, ContainerDefaults
from shoal.actors.node.containers import Containers
from shoal.actors.node.disk_watch import DiskWatch
from shoal.actors.node.gateway import Gateway
from shoal.actors.node.image_access import ensure_stored, object_access, tell_damaged
from shoal.actors.node.image_transfer import ImageTransfer
from shoal.actors.node.images import NodeImages
from shoal.actors.node.logs import LogFiles
from shoal.actors.node.machine_usage import MachineMeter
from shoal.actors.node.mount_sources import MountSources
from shoal.actors.node.mounts.buckets import BucketMounts, bucket_values
from shoal.actors.node.mounts.contract import MountKind
from shoal.actors.node.mounts.manager import Mounts
from shoal.actors.node.mounts.volumes import VolumeMounts, volume_access
from shoal.actors.node.ports import ExposedPorts
from shoal.actors.node.prepared import PreparedContainers
from shoal.actors.node.program_metrics import program_series
from shoal.actors.node.records import ContainerRecord, RecordFiles
from shoal.actors.node.relay import Relay
from shoal.actors.node.shipping.shipping import LogShipping, open_shipping
from shoal.actors.node.size_files import SizeFiles
from shoal.actors.node.usage_meter import UsageMeter, first_report
from shoal.actors.node.usage_sampler import UsageSampler
from shoal.images.binaries import agent_binary
from shoal.model import grants, verbs
from shoal.model.access import SandboxEvent
from shoal.model.errors import Unavailable
from shoal.model.ids import CONTROLLER, new_machine_id
from shoal.model.metrics import Series
from shoal.model.private_directory import make_private_directory
from shoal.model.serving_paths import ServingPaths
from shoal.model.settings import Settings
from shoal.model.spec import MIB
from shoal.model.usage import INTERVAL_S
from shoal.wire.agent import Agent
from shoal.wire.connection import Connection

log = logging.getLogger("shoal.node")

MOUNTS_EVERY_S = 1.0
"""How soon a mount that was lost is started again."""

USAGE_EVERY_S = INTERVAL_S
"""How often what the sandboxes use is sampled."""

IMAGES_EVERY_S = 60.0
"""How often the engine's images are compared with the cluster's: a crash may have left some."""

_EVENTS_S = 30.0
_AGENT_S = 5.0

_DEADLINE_MARGIN_S = 3600
"""A container ends itself this long after the longest lifetime of a sandbox, if nobody else ends it."""


@dataclass(slots=True)
class NodeParts:
    """What a node actor works with. `machine`: the machine's own id, which it keeps when it is started anew."""

    engine: Engine
    network: SandboxNetwork
    relay: Relay
    gateway: Gateway
    containers: Containers
    prepared: PreparedContainers
    ports: ExposedPorts
    logs: LogFiles
    disk_watch: DiskWatch
    machine: str
    images: NodeImages
    meter: MachineMeter
    mounts: Mounts
    usage: UsageSampler
    shipping: LogShipping | None = None

    def watch(self, record: ContainerRecord) -> None:
        """A container has just started for its sandbox: what it uses is counted."""
        self.usage.begin(record.sandbox_id or "")
        self.watch_disk(record)

    def watch_disk(self, record: ContainerRecord) -> None:
        if record.ready and needs_disk_watch(self.engine):
            self.disk_watch.add(record.key, record.shape.disk * MIB)

    def forget(self, key: str) -> None:
        """It is about to stop: what it has used is counted to the last."""
        self.usage.settle(key)
        self.disk_watch.remove(key)

    async def close(self) -> None:
        """Undoes what opening did to the machine. The containers are gone by now. It raises what failed, once all the
        rest is done."""
        async with contextlib.AsyncExitStack() as last_first:
            last_first.push_async_callback(asyncio.to_thread, self.containers.defaults.sources.close)
            last_first.push_async_callback(self.containers.disks_gone)
            last_first.push_async_callback(self.mounts.close)
            last_first.push_async_callback(asyncio.to_thread, cgroup_parent.remove)
            last_first.push_async_callback(self.engine.close)
            last_first.push_async_callback(self.network.close)
            last_first.push_async_callback(self.relay.close)
            last_first.push_async_callback(self.gateway.close)
            if self.shipping is not None:
                last_first.push_async_callback(self.shipping.close)
            if self.images.transfer is not None:
                last_first.push_async_callback(self.images.transfer.close)


async def open_node(
    settings: Settings, cluster: str, machine: str | None, secret: bytes, address: str, node_id: str
) -> NodeParts:
    """Opens engine, network and relay, and resumes the containers of an earlier node actor. `machine`: what one that
    has joined calls itself, None for the head; `address`: this machine's in the cluster; `node_id`: what it is called
    now. If it raises, network and relay stay for what runs there and for the next try; this process holds nothing
    open."""
    state = Path(settings.state_dir) / "node"
    sources = MountSources(Path(settings.run_dir) / cluster)
    await asyncio.to_thread(make_private_directory, state)
    await asyncio.to_thread(sources.open)
    binary = await asyncio.to_thread(install_agent, settings)
    await asyncio.to_thread(_raise_counts)
    async with contextlib.AsyncExitStack() as held:
        # First: it ends where nobody comes back to it, and needs none of the others.
        log_format = settings.telemetry.log_format
        paths = ServingPaths(settings.run_dir, cluster)
        gateway = Gateway(binary, paths, settings.api, state / "gateway.log", settings.telemetry, hostname())
        held.push_async_callback(gateway.detach)
        if gateway.wanted:
            gateway.watch()
        engine = engine_named(settings.engine, settings)
        held.push_async_callback(engine.close)
        await engine.open()
        network = SandboxNetwork(settings.network, network_owner(cluster, machine))
        await network.open()
        relay = Relay(
            binary,
            sources.links,
            address,
            state / "relay.port",
            state / "relay.log",
            secret,
            port=settings.node.relay_port,
            tls=_speaks_tls(settings, address),
            log_format=log_format,
        )
        held.push_async_callback(relay.detach)
        await relay.open()
        files = RecordFiles(state / "containers")
        labels = {CLUSTER_LABEL: cluster, NODE_LABEL: machine or platform.node()}
        defaults = await asyncio.to_thread(_container_defaults, settings, labels, binary, sources, secret, network)
        kinds: tuple[MountKind, ...] = (
            VolumeMounts(volume_access, settings.volumes.cache),
            BucketMounts(bucket_values, settings.network),
        )
        mounts = Mounts({kind.name: kind for kind in kinds}, state / "mounts", sources.top / "v")
        containers = Containers(
            engine, network, relay, files, defaults, settings.node.start_limit, mounts, records=await files.load()
        )
        mounts.records = containers.records.values
        await mounts.open()
        own_name = await asyncio.to_thread(_machine_id, state / "machine-id") if machine is None else machine
        if await asyncio.to_thread(_is_new, state / "node-id", node_id):
            await containers.stop_kept()
        await containers.forget_unfinished()
        await engine.forget_disks(containers.records)
        await containers.reconcile()
        ports = ExposedPorts(containers, relay)
        relay.on_connected = functools.partial(_tell_relay, containers, ports)
        with contextlib.suppress(Unavailable):  # the relay is being restarted, and calls it then
            await relay.on_connected()
        logs = LogFiles(state / "logs")
        ask_events = _ask_events if machine is None else None
        connect = functools.partial(_connect, containers, relay, secret)
        shipping = await open_shipping(settings.telemetry, cluster, hostname(), state, connect, ask_events, logs)
        if shipping is not None:
            held.push_async_callback(shipping.close)
            await shipping.start({record.sandbox_id for record in containers.records.values() if record.sandbox_id})
        await asyncio.to_thread((state / "node-id").write_text, node_id)
        held.pop_all()
    disk_watch = DiskWatch(engine, settings.node.disk_interval)
    transfer = None
    if engine.layers is not None:
        transfer = ImageTransfer(engine.layers, object_access, state / "transfer", tell_damaged, ensure_stored)
    images = NodeImages(engine, containers, cluster, transfer)
    spare_what_stays()
    return NodeParts(
        engine,
        network,
        relay,
        gateway,
        containers,
        PreparedContainers(images, containers, disk_watch),
        ports,
        logs,
        disk_watch,
        own_name,
        images,
        MachineMeter(Path(settings.state_dir)),
        mounts,
        UsageSampler(engine, containers, disk_watch, UsageMeter(first_report())),
        shipping,
    )


async def node_series(parts: NodeParts) -> dict[Series, float]:
    """What the node's gateway, relay and log shipping have counted."""
    found = await program_series(parts.gateway, parts.relay)
    return found if parts.shipping is None else {**found, **parts.shipping.series()}


async def _ask_events(after: int | None) -> Sequence[SandboxEvent] | int:
    """The cluster's events after an id; without one, the newest's id. `Unavailable` while there is no controller."""
    controller = await asyncio.to_thread(find_actor, CONTROLLER)
    if controller is None:
        raise Unavailable("there is no controller")
    if after is None:
        newest: int = await call(controller, "call", verbs.last_event.name, (), timeout_s=_EVENTS_S)
        return newest
    arguments = (after, None, None, _EVENTS_S / 2)
    found: Sequence[SandboxEvent] = await call(controller, "call", verbs.events.name, arguments, timeout_s=_EVENTS_S)
    return found


async def _connect(containers: Containers, relay: Relay, secret: bytes, sandbox_id: str) -> Agent:
    """A connection to the agent of a sandbox here, for its output; `NotFound` where it has no container."""
    record = containers.need(sandbox_id)
    token = grants.sign(secret, sandbox_id, record.key, (grants.SCOPE_EXEC,), time.time() + grants.TTL_S)
    return Agent(await Connection.open(relay.endpoint, token, wait_s=_AGENT_S, timeout_s=2 * _AGENT_S))


def _machine_id(file: Path) -> str:
    """The id in `file`, which is made where it is missing."""
    try:
        return file.read_text("ascii").strip()
    except FileNotFoundError:
        made = new_machine_id()
        temporary = file.with_suffix(".new")
        temporary.write_text(made)
        temporary.replace(file)
        return made


def _is_new(file: Path, node_id: str) -> bool:
    """Whether this is not the node that was here last."""
    try:
        return file.read_text() != node_id
    except FileNotFoundError:
        return True


def needs_disk_watch(engine: Engine) -> bool:
    return Ability.DISK_LIMIT not in engine.abilities


def machine_size() -> tuple[float, int]:
    """(cores, MiB) of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return float(os.cpu_count() or 1), memory // MIB


def disk_size(settings: Settings) -> int:
    """MiB of the file system that holds the sandboxes' disks."""
    return shutil.disk_usage(settings.state_dir).total // MIB


def most_pids(settings: Settings) -> int:
    """The most processes and threads of all sandboxes on this machine together."""
    return settings.node.pids or cgroup_parent.most_pids()


def own_addresses() -> list[str]:
    """Every address of this machine's interfaces, IPv4 and IPv6, but for those that mean something here only."""
    found = {
        ip_address(address.address.partition("%")[0])
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6)
    }
    return sorted(str(address) for address in found if not (address.is_loopback or address.is_link_local))


def hostname() -> str:
    return socket.gethostname()


def install_agent(settings: Settings) -> Path:
    """Copies the agent to a name made of its content: running containers keep theirs when Shoal is upgraded. Blocks."""
    content = (settings.agent or agent_binary()).read_bytes()
    directory = Path(settings.state_dir) / "node" / "bin"
    target = directory / f"agent-{hashlib.sha256(content).hexdigest()[:16]}"
    if not target.exists():
        directory.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(content)
        temporary.chmod(0o755)
        temporary.replace(target)
    return target


async def _tell_relay(containers: Containers, ports: ExposedPorts) -> None:
    """Tells a relay that may be new what it can't know by itself."""
    await containers.identify_all()
    await ports.restore()


def _raise_counts() -> None:
    lacking = kernel_counts.raise_counts()
    if lacking:
        log.warning("one sandbox can use up what all need of the kernel: %s", kernel_counts.remedy(lacking))


def _speaks_tls(settings: Settings, address: str) -> bool:
    """Whether what passes through the relay crosses a network, or is to be encrypted anyway."""
    wanted = settings.network.relay_tls
    return wanted == "always" or (wanted == "auto" and not ip_address(address).is_loopback)


def _container_defaults(
    settings: Settings,
    labels: Mapping[str, str],
    binary: Path,
    sources: MountSources,
    secret: bytes,
    network: SandboxNetwork,
) -> ContainerDefaults:
    inherited = inherited_settings.inherit(
        settings.host, os.environ, inherited_settings.pip_config() if settings.host.package_index else {}
    )
    env = {
        **inherited.env,
        "SHOAL_ORPHAN_S": f"{settings.node.orphan_timeout:.0f}",
        DEADLINE: f"{settings.limits.timeout + _DEADLINE_MARGIN_S:.0f}",
    }
    return ContainerDefaults(
        agent=sources.put("agent", binary.read_bytes(), 0o555),
        sources=sources,
        sizes=SizeFiles(sources.root),
        secret=secret,
        labels=labels,
        env=env,
        mounts=tuple(
            replace(mount, source=sources.put(f"host-{number}", mount.source.read_bytes()))
            for number, mount in enumerate(inherited.mounts)
        ),
        resolv_conf=sources.put("resolv.conf", network.resolv_conf().encode()),
        empty_resolv_conf=sources.put("resolv.conf.none", b""),
    )
