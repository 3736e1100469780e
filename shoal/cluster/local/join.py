"""`shoal join` and `shoal leave`: this machine as a node of a cluster whose head is elsewhere, or on this machine.

    join     engine → base image → Ray → admitted by the controller → joined.json. A node that runs stays as it is; if a
             part has died, the rest is removed and all is started anew.
    leave    emptied by the controller, then the same backwards, whatever of it still lives.

Several nodes may be on one machine: each has a state directory, a `run_dir`, a bridge and a subnet of its own. An
engine may serve several, which tell their containers apart by a label. The bound on the processes of all sandboxes
together is the machine's: its nodes share it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from shoal.actors.engines import seccomp
from shoal.actors.names import MACHINE_LABEL, network_owner
from shoal.cluster.local import actors as local_actors
from shoal.cluster.local import engines, joined_file, packages, processes, take_down
from shoal.cluster.local import gvisor as local_gvisor
from shoal.cluster.local import ray as local_ray
from shoal.cluster.local import state as local_state
from shoal.cluster.local import sweep as local_sweep
from shoal.cluster.local.engines import LocalEngine
from shoal.cluster.local.joined_file import JoinedFile
from shoal.model import cluster_file, machine
from shoal.model.errors import FailedPrecondition, InvalidRequest, NodeNotFound, ShoalError, Unavailable
from shoal.model.join_token import JoinToken
from shoal.model.machine import MachineFile
from shoal.model.report import Report, silent
from shoal.model.settings import Settings

_HEAD_S = 5.0
_KEPT = ("region", "zone", "cpus", "memory", "gpus", "labels", "environ")
"""Options that a node keeps when it is joined again without any."""


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """How to join. `head`: `host[:port]` of Ray there; None: as last time, with the token of then.

    `address`: this machine's, by which the cluster reaches it; None: the one from which it reaches the head. `cpus`,
    `memory` (MiB), `gpus`: what Ray may assign; None: what the machine has. `labels`, `environ`: of the Ray node.
    `admitted`: wait until the controller has admitted it, which a provider of machines leaves out. `with_gvisor`: build
    gVisor where it is missing.
    """

    head: str | None = None
    token: JoinToken | None = None
    address: str | None = None
    region: str | None = None
    zone: str | None = None
    cpus: int | None = None
    memory: int | None = None
    gpus: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    admitted: bool = True
    with_gvisor: bool = False


@dataclass(frozen=True, slots=True)
class Joined:
    """What `join` did: `started` False where the node ran already."""

    machine: JoinedFile
    started: bool


def join(settings: Settings, options: JoinOptions | None = None, report: Report = silent) -> Joined:
    """Makes sure that this machine is a node of the cluster. `settings`: this machine's; of them those count that
    `model/machine.py` names, the rest are the cluster's.

    What it had started is taken back when it fails or is interrupted. Raises `FailedPrecondition` with the remedy where
    the machine lacks something, has other versions, or is not reached by the head (state `unreachable`);
    `InvalidRequest`, `Unavailable`.
    """
    options = options or JoinOptions()
    if os.geteuid() != 0:
        raise FailedPrecondition(
            "a node makes network interfaces and mounts, which only root may: run `shoal join` as root",
            state="not_root",
        )
    with local_state.lock(settings.state_dir, report):
        if cluster_file.path_in(settings.state_dir).exists():
            raise FailedPrecondition(
                f"state_dir: {settings.state_dir} is that of a cluster's head; run `shoal down` first, or set "
                "SHOAL_STATE_DIR (and SHOAL_RUN_DIR) to others for a second node on this machine",
                state="head",
            )
        before = joined_file.read(settings.state_dir)
        options = _completed(settings, options, before)
        if before is not None and well(before) and _is_of(before, options):
            if before.head != options.head:
                raise FailedPrecondition(
                    f"this machine is a node of the cluster at {before.head}; run `shoal leave` first", state="joined"
                )
            if options.with_gvisor:
                local_gvisor.ensure(engines.at(before.engine_address, settings), settings, report)
            if options.admitted:
                with report("Looking at the node that runs"):
                    local_actors.admit(before)
            return Joined(before, started=False)
        if before is not None:
            with report("Taking away what is left of a node that died"):
                take_down.raise_first(_take_down(settings.state_dir, before, keep_engine=True, forget=False))
        return Joined(_start(settings, options, report, forget=before is None), started=True)


def leave(settings: Settings, *, force: bool = False, timeout_s: float = 60.0, report: Report = silent) -> bool:
    """Takes this machine out of its cluster, once no sandbox runs here any more. Whether there was anything to do.

    It is cordoned at once, and waits up to `timeout_s` for its sandboxes' ends; then `FailedPrecondition` (state
    `in_use`), and it stays cordoned. `force`: they are ended, with the reason `evicted`, and it goes though the head
    does not answer.
    """
    with local_state.lock(settings.state_dir, report):
        joined = joined_file.read(settings.state_dir)
        if joined is None:
            return False
        try:
            _empty(joined, force, timeout_s, report)
        except Unavailable as error:
            if not force:
                raise Unavailable(
                    f"{error.message}; `shoal leave --force` leaves without the head, and ends what runs here"
                ) from None
        except ShoalError:
            if not force:
                raise
        with report("Stopping the node"):
            take_down.raise_first(_take_down(settings.state_dir, joined, keep_engine=False, forget=True))
        return True


def well(joined: JoinedFile, within_s: float = 3.0) -> bool:
    """Whether the node's parts on this machine live."""
    return (
        bool(joined.ray)
        and all(map(processes.alive, joined.ray))
        and engines.at(joined.engine_address, Settings.from_dict(joined.settings)).answers(within_s)
    )


def _empty(joined: JoinedFile, force: bool, timeout_s: float, report: Report) -> None:
    if not (joined.ray and all(map(processes.alive, joined.ray))):
        return  # for the cluster it is lost already
    if not local_ray.answers(joined.head, _HEAD_S):
        raise Unavailable(f"the head at {joined.head} does not answer")
    try:
        with report("Waiting until no sandbox runs here"):
            left = local_actors.let_go(joined, force=force, wait_s=timeout_s)
    except NodeNotFound:
        return  # it was drained, and has left
    if left and not force:
        raise FailedPrecondition(
            f"{left} sandboxes still run here, and no new ones start; wait for them with a longer --timeout, or end "
            "them with --force",
            state="in_use",
        )


def _completed(settings: Settings, options: JoinOptions, before: JoinedFile | None) -> JoinOptions:
    """With what was left out as it was last time."""
    if options.head is None:
        if before is None:
            raise InvalidRequest("HEAD: name the head, as host:port; `shoal node token` there tells", field="head")
        kept = {name: before.options.get(name) for name in _KEPT if getattr(options, name) in (None, {})}
        given = {name: value for name, value in kept.items() if value is not None}
        options = replace(options, head=before.head, **given)
    head = normal_head(options.head or "")
    if options.token is None:
        if before is None or before.head != head:
            raise InvalidRequest(
                "token: a machine joins by a token; `shoal node token` on the head prints it", field="token"
            )
        options = replace(options, token=_token_of(before))
    return replace(options, head=head, address=options.address or (before.address if before is not None else None))


def normal_head(text: str) -> str:
    """`host:port` of the head; `InvalidRequest` if it is none."""
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = text, str(local_ray.DEFAULT_PORT)
    if host in (local_ray.LOOPBACK, "localhost", "::1"):
        raise InvalidRequest(
            f"HEAD: a cluster at {host} takes no other nodes; start it with `shoal up --address-ip IP`, "
            "which for nodes on this machine alone may be 127.0.0.2",
            field="head",
        )
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidRequest(f"HEAD: {text!r} is not host:port, such as 10.0.0.5:6379", field="head")
    return f"{host}:{port}"


def _is_of(before: JoinedFile, options: JoinOptions) -> bool:
    """Whether the node that runs is of the cluster meant: one at the same address that was started anew has another
    token."""
    if before.head != options.head or options.token is None:
        return True
    return options.token.ray_token == _token_of(before).ray_token


def _token_of(before: JoinedFile) -> JoinToken:
    try:
        ray_token = Path(before.auth_token_path).read_text("ascii").strip()
    except OSError as error:
        raise FailedPrecondition(f"the token of last time is gone ({error.strerror}); give it again") from None
    return JoinToken(before.cluster, ray_token, {})


def _start(settings: Settings, options: JoinOptions, report: Report, *, forget: bool) -> JoinedFile:
    """`forget`: where it fails, nothing is remembered. Else the next `join` without arguments tries again."""
    state, run_dir, head, token = settings.state_dir, settings.run_dir, options.head, options.token
    assert head is not None
    assert token is not None
    token.check_versions()
    address = options.address or _own_address(head)
    local_ray.free_port(address)
    if not local_ray.answers(head, _HEAD_S):
        raise Unavailable(
            f"HEAD: nothing accepts connections at {head} from here; start the head with `shoal up --address-ip IP`, "
            "open Ray's port to this machine, or correct the address"
        )
    if options.admitted:  # a person waits, who may have mistyped it; a provider of machines has it from the head
        with report("Asking the head"):
            local_ray.check_token(head, token.ray_token)
    name = local_state.identity(state)
    temp_dir = local_ray.choose_temp_dir(state, run_dir)
    seccomp.profile_json(settings.node.seccomp_profile)
    _check_alone(settings, token.cluster, name)
    packages.ensure(packages.NODE_PROGRAMS, report)
    cluster_file.write_private(state / "auth_token", token.ray_token.encode())
    joined = JoinedFile(
        cluster=token.cluster,
        name=name,
        head=head,
        address=address,
        auth_token_path=str(state / "auth_token"),
        engine_address=settings.engine_address or "",
        run_dir=str(run_dir),
        temp_dir=str(temp_dir),
        joined_at=time.time(),
        settings=settings.to_dict(),
        options={name: getattr(options, name) for name in _KEPT},
    )
    # The intent: what is started from here on, `leave` finds.
    joined_file.write(state, joined)
    try:
        engine = engines.provide(settings, report)
        if options.with_gvisor:
            local_gvisor.ensure(engine, settings, report)
        joined = replace(
            joined,
            engine_address=engine.address,
            engine=engine.process,
            settings=settings.model_copy(update={"engine": engine.kind, "engine_address": engine.address}).to_dict(),
        )
        joined_file.write(state, joined)
        engine.ensure_image(settings.sandbox.image, state / "cache", report)
        take_down.raise_first(_sweep(joined, engine))  # of an earlier node of this state directory
        local_ray.stop(name, temp_dir)
        local_state.forget_sessions(temp_dir)
        with report("Starting Ray"):
            own = state / "machine.json"
            MachineFile(name, machine.own_settings(joined.settings)).write(own)
            local_ray.join(_worker_options(settings, options, joined, own))
        joined = replace(joined, ray=tuple(local_ray.daemons(name, temp_dir)))
        joined_file.write(state, joined)
        if options.admitted:
            with report("Joining the cluster"):
                local_actors.admit(joined)
    except BaseException:
        _take_down(state, joined, keep_engine=False, forget=forget)
        raise
    return joined


def _worker_options(settings: Settings, options: JoinOptions, joined: JoinedFile, own: Path) -> local_ray.WorkerOptions:
    cpus = (
        options.cpus
        if options.cpus is not None
        else max(1, round((os.cpu_count() or 1) * settings.node.cpu_overcommit))
    )
    return local_ray.WorkerOptions(
        owner=joined.name,
        temp_dir=Path(joined.temp_dir),
        token_path=Path(joined.auth_token_path),
        address=joined.address,
        head=joined.head,
        cpus=cpus,
        memory=options.memory,
        gpus=options.gpus,
        region=options.region,
        zone=options.zone,
        labels={**options.labels, MACHINE_LABEL: joined.name},
        environ={**options.environ, machine.VARIABLE: str(own)},
    )


def _own_address(head: str) -> str:
    """The address from which this machine reaches the head."""
    host, _, port = head.rpartition(":")
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)  # sends nothing
            own = str(probe.getsockname()[0])
    except OSError as error:
        raise Unavailable(f"HEAD: {head} is not reached from here: {error.strerror}; correct the address") from None
    # At this one Ray would take no other nodes; a head that is reached from it is at another of the loopback's.
    return host if own == local_ray.LOOPBACK else own


def _check_alone(settings: Settings, cluster: str, name: str) -> None:
    """`FailedPrecondition` where another node of this machine has the same directory or bridge."""
    bridge = settings.network.bridge
    owner = local_sweep.bridge_owner(bridge)
    if owner not in (None, "", network_owner(cluster, name)):
        raise FailedPrecondition(
            f"network.bridge: {bridge} belongs to {owner} on this machine; set SHOAL_NETWORK__BRIDGE and "
            f"SHOAL_NETWORK__SUBNET to others, or remove it with `ip link del {bridge}`",
            state="taken",
        )
    mine = {p.pid for p in processes.of_cluster(name, local_state.temp_dir(settings))}
    others = [p for p in processes.listening_below(settings.run_dir / cluster) if p.pid not in mine]
    if others and not joined_file.path_in(settings.state_dir).exists():
        raise FailedPrecondition(
            f"run_dir: another node of this cluster uses {settings.run_dir} on this machine; set SHOAL_RUN_DIR",
            state="taken",
        )


def _take_down(state: Path, joined: JoinedFile, *, keep_engine: bool, forget: bool) -> list[ShoalError]:
    """Every step, whatever became of those before; what went wrong and is still there."""
    temp_dir, run_dir = Path(joined.temp_dir), Path(joined.run_dir)
    local_ray.stop(joined.name, temp_dir)
    settings = Settings.from_dict(joined.settings)
    engine = engines.reach(joined.engine_address, settings, own=joined.engine is not None)
    errors = _sweep(joined, engine)
    if not keep_engine and not errors and engine is not None:
        engine.stop(keep=True)
    if not errors and forget:
        joined_file.remove(state)
        for name in ("auth_token", "machine.json"):
            (state / name).unlink(missing_ok=True)
    take_down.remove_directories(temp_dir, run_dir)
    return errors


def _sweep(joined: JoinedFile, engine: LocalEngine | None) -> list[ShoalError]:
    settings = Settings.from_dict(joined.settings)
    return local_sweep.everything(engine, joined.cluster, Path(joined.run_dir), settings.network, joined.name)
