"""`shoal up` and `shoal down`: starting, repairing and removing a cluster on one machine.

    up      engine → base image → Ray → actors → cluster.json → API. A cluster that runs stays as it is; if a part has
            died, the rest is removed and all is started anew.
    down    the same backwards, whatever of it still lives.

    engines/         the engine             ray.py           Ray's head
    gvisor.py        gVisor, if asked for   actors.py        controller and nodes
    api.py           the HTTP API           serving/         the API in Serve
    sweep.py         what a crash leaves    processes.py     which processes are ours
    state.py         the state directory    packages.py      programs that a node needs
    objects/         the object storage: the controller starts its server when it is needed, `down` ends it
    take_down.py     what `down` shares with `shoal leave` (join.py)
    scaling/         machines of a cluster that `shoal cluster up` started

In the state directory stay, until `purge`: persistent sandboxes, the engine's images, the base image's archive, the
object storage, logs, settings.
"""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path

from shoal.actors.engines import seccomp
from shoal.actors.node.records import read_records
from shoal.cluster.local import actors as local_actors
from shoal.cluster.local import api as local_api
from shoal.cluster.local import engines, joined_file, packages, processes, take_down
from shoal.cluster.local import gvisor as local_gvisor
from shoal.cluster.local import ray as local_ray
from shoal.cluster.local import state as local_state
from shoal.cluster.local import sweep as local_sweep
from shoal.cluster.local.engines import LocalEngine
from shoal.cluster.objects.server import ObjectServer
from shoal.cluster.scaling import lifecycle as scaling
from shoal.model import cluster_file
from shoal.model.cluster_file import ClusterFile
from shoal.model.errors import FailedPrecondition, ShoalError, Unavailable
from shoal.model.report import Report, silent
from shoal.model.settings import Settings

_PATIENT_S = 60.0
"""How long `up` waits for what it would take away with all its sandboxes: what is dead refuses at once, what hangs may
only be slow.
"""


_SECRETS = ("auth_token", "secret", "ray_state")
"""Files that live as long as a cluster: Ray's token, the cluster's own secret, the name of Ray's state in Redis."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """How to start Ray. `address`: what it listens on; `port` None: 6379 where it is free. `with_gvisor`: build gVisor
    where it is missing."""

    address: str = "127.0.0.1"
    port: int | None = None
    region: str | None = None
    dashboard: bool = False
    with_gvisor: bool = False


@dataclass(frozen=True, slots=True)
class Up:
    """What `up` did: `started` False where the cluster ran already."""

    cluster: ClusterFile
    nodes: int
    started: bool


@dataclass(frozen=True, slots=True)
class Health:
    """Which parts of a cluster answer; `api` None: there is none."""

    engine: bool
    ray: bool
    api: bool | None

    @property
    def good(self) -> bool:
        """Whether it lives. The API can be mended without touching the rest."""
        return self.engine and self.ray


def up(settings: Settings, options: UpOptions | None = None, report: Report = silent) -> Up:
    """Makes sure that a cluster runs on this machine.

    What it had started is taken back when it fails or is interrupted.

    Raises `FailedPrecondition` with the remedy where the machine lacks something, `InvalidRequest` for settings that
    make no sense.
    """
    options = options or UpOptions()
    with local_state.lock(settings.state_dir, report):
        if joined_file.path_in(settings.state_dir).exists():
            raise FailedPrecondition(
                f"state_dir: with {settings.state_dir} this machine has joined a cluster; run `shoal leave` first",
                state="joined",
            )
        cluster = cluster_file.read(settings.state_dir)
        if cluster is not None and health(cluster, _PATIENT_S).good:
            if options.with_gvisor:
                local_gvisor.ensure(engines.at(cluster.engine_address, settings), settings, report)
            with report("Looking at the cluster that runs"):
                nodes = _deploy_again(cluster)
                _scale(settings.state_dir, cluster)
                local_api.mend(cluster)
                return Up(cluster, nodes, started=False)
        if cluster is not None:
            with report("Taking away what is left of a cluster that died"):
                _take_down(settings.state_dir, cluster, drain=False, keep_engine=True)
            if settings.store.redis is not None:
                options = _where_it_was(options, cluster)
        return _start(settings, options, report)


def down(settings: Settings, *, purge: bool = False, report: Report = silent) -> bool:
    """Takes the cluster away: sandboxes, actors, Ray, and the engine where it is Shoal's own. Persistent sandboxes are
    stopped, and are there again with the next `up`.

    Whether there was anything to take away.

    `purge`: also the persistent sandboxes, and the images, caches and logs in the state directory; an engine that is
    not Shoal's keeps its base image. Raises the first thing that could not be undone, after trying all.
    """
    with local_state.lock(settings.state_dir, report):
        try:
            cluster = cluster_file.read(settings.state_dir)
        except FailedPrecondition:
            cluster = None  # nothing that it says is needed
        found = cluster is not None or _leftovers(settings)
        cluster = _presumed(settings) if cluster is None else _understood(cluster, settings)
        with report("Ending sandboxes and stopping the cluster"):
            errors = _take_down(settings.state_dir, cluster, drain=True, keep_engine=False, keep=not purge)
        if errors:
            raise errors[0]
        if purge:
            with report("Removing images, caches and logs"):
                local_state.purge(settings)
        return found


def kept_sandboxes(settings: Settings) -> int:
    """How many persistent sandboxes have their disks on this machine."""
    return sum(record.kept for record in read_records(settings.state_dir / "node" / "containers").values())


def health(cluster: ClusterFile, within_s: float = 3.0) -> Health:
    """Which parts answer, without connecting to Ray.

    Takes milliseconds, at most twice `within_s` where something hangs. `FailedPrecondition` for a cluster of another
    release of Shoal.
    """
    engine = engines.at(cluster.engine_address, local_state.settings_of(cluster)).answers(within_s)
    ray = all(map(processes.alive, cluster.ray)) and local_ray.answers(cluster.ray_address, within_s)
    return Health(engine, ray, local_api.answers(cluster) if cluster.api_listens else None)


def roll(settings: Settings, report: Report = silent) -> ClusterFile:
    """Replaces the API's replicas and gateway while it serves: with the code that is installed now, and the certificate
    of now.

    `FailedPrecondition` where there is no cluster with an API.
    """
    with local_state.lock(settings.state_dir, report):
        cluster = cluster_file.read(settings.state_dir)
        if cluster is None or not cluster.api_listens:
            raise FailedPrecondition("there is no cluster with an API; run `shoal up`", state="no_cluster")
        with report("Replacing the API's replicas and gateway"):
            local_api.start(cluster, roll=True)
        return cluster


def _start(settings: Settings, options: UpOptions, report: Report) -> Up:
    state, run_dir = settings.state_dir, settings.run_dir
    identity = local_state.identity(state)
    temp_dir = local_ray.choose_temp_dir(state, run_dir)
    api = local_api.plan(settings, identity)
    seccomp.profile_json(settings.node.seccomp_profile)
    packages.ensure(packages.NODE_PROGRAMS, report)
    engine: LocalEngine | None = None
    try:
        engine = engines.provide(settings, report)
        if options.with_gvisor:
            local_gvisor.ensure(engine, settings, report)
        engine.ensure_image(settings.sandbox.image, state / "cache", report)
        # Of an earlier cluster of this state directory whose `cluster.json` is lost.
        take_down.raise_first(local_sweep.everything(engine, identity, run_dir, settings.network))
        local_ray.stop(identity, temp_dir)
        local_state.forget_sessions(temp_dir)
        _make_secrets(state, keep=settings.store.redis is not None)
        with report("Starting Ray"):
            head = _head_options(settings, options, identity, temp_dir)
            address = local_ray.start(head)
        cluster = ClusterFile(
            cluster=identity,
            ray_address=address,
            engine_address=engine.address,
            auth_token_path=str(state / "auth_token"),
            secret_path=str(state / "secret"),
            run_dir=str(run_dir),
            temp_dir=str(temp_dir),
            started_at=time.time(),
            engine=engine.process,
            ray=tuple(local_ray.daemons(identity, temp_dir)),
            settings=_as_found(settings, engine, api).to_dict(),
        )
        with report("Starting controller and node"):
            nodes = local_actors.deploy(cluster, _secret(cluster))
        if api is not None:
            cluster = replace(cluster, api_listens=api.listens, api_url=api.url)
            with report("Starting the API"):
                local_api.start(cluster)
        cluster_file.write(state, cluster)
        _scale(state, cluster)
    except BaseException:
        _take_down(state, _presumed(settings, engine), drain=False, keep_engine=False)
        raise
    return Up(cluster, nodes, started=True)


def _make_secrets(state: Path, *, keep: bool) -> None:
    """New ones for a new cluster. `keep`: those that are there, which machines that have joined know."""
    made = {
        "auth_token": secrets.token_hex(32).encode(),
        "secret": secrets.token_bytes(32),
        "ray_state": f"shoal-{secrets.token_hex(4)}".encode(),
    }
    for name in _SECRETS:
        if not (keep and (state / name).exists()):
            cluster_file.write_private(state / name, made[name])


def _where_it_was(options: UpOptions, cluster: ClusterFile) -> UpOptions:
    """With the address that machines that have joined know."""
    address, _, port = cluster.ray_address.rpartition(":")
    return replace(options, address=address, port=int(port)) if options == UpOptions() else options


def _as_found(settings: Settings, engine: LocalEngine, api: local_api.Plan | None) -> Settings:
    """The settings as the cluster's processes get them: what was left open is decided, the API's URL too, by which
    tunnels are named.
    """
    found: dict[str, object] = {"engine": engine.kind, "engine_address": engine.address}
    if api is not None:
        found["api"] = settings.api.model_copy(update={"port": api.port, "url": api.url})
    return settings.model_copy(update=found)


def _deploy_again(cluster: ClusterFile) -> int:
    """Of a cluster whose processes live: it may only be slow, so nothing is taken away from those who use it."""
    try:
        return local_actors.deploy(cluster, _secret(cluster))
    except Unavailable as error:
        raise Unavailable(f"{error.message}; try again, or start anew with `shoal down` and `shoal up`") from None


def _take_down(
    state: Path, cluster: ClusterFile, *, drain: bool, keep_engine: bool, keep: bool = True
) -> list[ShoalError]:
    """Every step, whatever became of those before; what went wrong and is still there. `keep`: persistent sandboxes are
    stopped, not removed."""
    settings = local_state.settings_of(cluster)
    local_api.forget(cluster)
    run_dir, temp_dir = Path(cluster.run_dir), Path(cluster.temp_dir)
    elsewhere: list[ShoalError] = []
    if drain and cluster.ray_address and health(cluster).ray:
        try:
            elsewhere += local_actors.drain(cluster)
        except ShoalError:
            pass  # what actors would not take away, the sweep does
    local_ray.stop(cluster.cluster, temp_dir)
    try:
        ObjectServer(state).stop()  # after the controller, which would start it anew
    except ShoalError as error:
        elsewhere.append(error)
    elsewhere += scaling.end_machines(state, forget=not keep_engine)
    engine = engines.reach(cluster.engine_address, settings, own=cluster.engine is not None)
    errors = local_sweep.everything(engine, cluster.cluster, run_dir, settings.network, keep=keep)
    if not keep_engine and not errors and engine is not None:
        engine.stop(keep=keep)
    if not errors:
        cluster_file.remove(state)
        for name in _SECRETS if drain or settings.store.redis is None else ():
            (state / name).unlink(missing_ok=True)
    take_down.remove_directories(temp_dir, run_dir)
    return [*errors, *elsewhere]


def _presumed(settings: Settings, engine: LocalEngine | None = None) -> ClusterFile:
    """A cluster as its file would have described it, for taking away one that has none."""
    engine = engine or _engine_there(settings)
    return ClusterFile(
        cluster=local_state.identity(settings.state_dir),
        ray_address="",
        engine_address=engine.address if engine else settings.engine_address or "",
        auth_token_path="",
        secret_path="",
        run_dir=str(settings.run_dir),
        temp_dir=str(local_state.temp_dir(settings)),
        started_at=0.0,
        engine=engine.process if engine else None,
        settings=settings.to_dict(),
    )


def _understood(cluster: ClusterFile, settings: Settings) -> ClusterFile:
    """One that another release of Shoal has started, with settings that are none for this one, is taken away by those
    of now.
    """
    try:
        local_state.settings_of(cluster)
    except FailedPrecondition:
        return replace(cluster, settings=settings.to_dict())
    return cluster


def _engine_there(settings: Settings) -> LocalEngine | None:
    try:
        return engines.there(settings)
    except Unavailable:
        return None


def _leftovers(settings: Settings) -> bool:
    """Whether anything of a cluster without a file is there."""
    identity = local_state.identity(settings.state_dir)
    return (
        bool(processes.of_cluster(identity, local_state.temp_dir(settings)))
        or (settings.run_dir / identity).exists()
        or engines.leftover(settings)
        or ObjectServer(settings.state_dir).running() is not None
    )


def _head_options(settings: Settings, options: UpOptions, identity: str, temp_dir: Path) -> local_ray.HeadOptions:
    scaled = scaling.described(settings.state_dir)
    return local_ray.HeadOptions(
        owner=identity,
        temp_dir=temp_dir,
        token_path=settings.state_dir / "auth_token",
        address=options.address,
        port=options.port,
        cpus=max(1, round((os.cpu_count() or 1) * settings.node.cpu_overcommit)),
        region=options.region,
        dashboard=options.dashboard,
        redis=settings.store.redis,
        kept_as=(settings.state_dir / "ray_state").read_text("ascii"),
        monitor=not scaled,
        environ=scaling.head_environment() if scaled else {},
    )


def _scale(state: Path, cluster: ClusterFile) -> None:
    """Starts what scales the cluster, where that is described."""
    if scaling.described(state):
        local_actors.scale(cluster, state)


def _secret(cluster: ClusterFile) -> bytes:
    try:
        return Path(cluster.secret_path).read_bytes()
    except OSError as error:
        raise Unavailable(f"the cluster's secret cannot be read: {error}") from None
