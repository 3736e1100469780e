"""Ray's head, or a node that joins one, on this machine: starting, finding and stopping it. Other Ray clusters are
left alone.

On a loopback address Ray listens on nothing but the loopback. Its token lies in a file that only the owner reads; no
other of its ways to a token (`~/.ray`) is looked at.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from shoal.actors.names import REGION_LABEL, ZONE_LABEL
from shoal.cluster.local import processes
from shoal.model.cluster_file import READ_ON_IMPORT, ProcessRef, loopback_environment
from shoal.model.errors import FailedPrecondition, InvalidRequest, ShoalError
from shoal.model.private_directory import make_private_directory
from shoal.model.sockets import LONGEST_PATH

DEFAULT_PORT = 6379
LOOPBACK = "127.0.0.1"
"""On this address Ray listens on nothing else, and takes no other nodes: see `loopback_environment`."""
CLOSED = "ray"
"""The directory around Ray's own, which no other account may enter."""
_SESSIONS = "s"

HEAD_AWAY_S = 300.0
"""How long a node that has joined waits for its head to come back, before Ray ends there with all that it runs."""

_REDIS_PORT = 6379
_START_S = 120.0
_ASK_S = 30.0
_REFUSED = "AuthenticationError"  # as Ray's commands name it
_GRACE_S = 3.0
_LONGEST_SOCKET = len("/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store")
_DROPPED = (
    *("RAY_ADDRESS", "RAY_NAMESPACE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_TMPDIR"),
    *READ_ON_IMPORT,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """How to start Ray's part on a machine.

    `owner` marks its processes. `cpus`, `memory` (MiB), `gpus`: what Ray may assign; None: what it finds. `labels`:
    of the Ray node; `environ`: for its processes, beside this one's.
    """

    owner: str
    temp_dir: Path
    token_path: Path
    address: str = "127.0.0.1"
    cpus: int | None = None
    memory: int | None = None
    gpus: int | None = None
    region: str | None = None
    zone: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    dashboard: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOptions(RayOptions):
    """How to start the head. `port` None: the usual one if free, else any. `redis`: the URL of what keeps its state, in
    the namespace `kept_as`; None: it is in the head's memory. `monitor`: whether Ray's, which scales nothing, but tells
    numbers."""

    port: int | None = None
    redis: str | None = None
    kept_as: str = ""
    monitor: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions(RayOptions):
    """How to start a node that joins the head at `head` (`host:port`)."""

    head: str


def choose_temp_dir(state_dir: Path, run_dir: Path) -> Path:
    """Ray's session directory: in the state directory, or in `run_dir` if that path is too long for Ray's sockets.

    Ray opens it to everybody (0777), with most of what is in it. So it lies in a directory of its own, which `start`
    closes: who may write there chooses where root's logs go.
    """
    for directory in (state_dir / CLOSED / _SESSIONS, run_dir / CLOSED / _SESSIONS):
        if len(os.fsencode(directory)) + _LONGEST_SOCKET <= LONGEST_PATH:
            return directory
    raise InvalidRequest(
        f"state_dir: {state_dir} and run_dir {run_dir} are too long for Ray's sockets; use one like /var/lib/shoal",
        field="state_dir",
    )


def start(options: HeadOptions) -> str:
    """Starts a head and returns its address (`host:port`) once it answers."""
    port = _choose_port(options)
    redis = external_redis(options.redis, options.kept_as)
    _run(
        replace(options, environ={**options.environ, **redis.environ}),
        [
            *redis.arguments,
            "--head",
            f"--port={port}",
            f"--include-dashboard={str(options.dashboard).lower()}",
            # Fixed ports would prevent a second cluster on this machine.
            f"--ray-client-server-port={free_port(options.address)}",
            *([] if options.monitor else ["--no-monitor"]),
        ],
    )
    return f"{options.address}:{port}"


@dataclass(frozen=True, slots=True)
class ExternalRedis:
    """How `ray start --head` is told of a Redis."""

    environ: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


def external_redis(url: str | None, namespace: str) -> ExternalRedis:
    """`InvalidRequest` (field `store.redis`) for what is no URL of a Redis.

    Ray's GCS takes a password only on its command line, which other accounts of the head's machine see.
    """
    if url is None:
        return ExternalRedis()
    parts = urlsplit(url)
    try:
        port = _REDIS_PORT if parts.port is None else parts.port
    except ValueError:
        port = 0
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or not port or parts.path not in ("", "/"):
        raise InvalidRequest(
            "store.redis: give redis://[user:password@]host[:port], or rediss: for TLS; Ray uses database 0",
            field="store.redis",
        )
    scheme = "rediss://" if parts.scheme == "rediss" else ""
    names = {"username": parts.username, "password": parts.password}
    return ExternalRedis(
        {"RAY_REDIS_ADDRESS": f"{scheme}{parts.hostname}:{port}", "RAY_external_storage_namespace": namespace},
        tuple(f"--redis-{name}={unquote(value)}" for name, value in names.items() if value),
    )


def check_token(head: str, token: str) -> None:
    """`InvalidRequest` (field `token`) where the head refuses it. Whatever else is wrong, a node's start tells."""
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    with suppress(subprocess.TimeoutExpired):
        asked = subprocess.run(
            [*_ray_program(), "status", "--address", head],
            env={**_inherited(), **loopback_environment(head.rpartition(":")[0]), **own},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ASK_S,
            check=False,
        )
        if _REFUSED in asked.stderr:
            raise _wrong_token()


def join(options: WorkerOptions) -> None:
    """Starts a node that joins a head, and returns once the head knows it."""
    free_port(options.address)  # `InvalidRequest` if it is not this machine's
    environ = {"RAY_gcs_rpc_server_reconnect_timeout_s": f"{HEAD_AWAY_S:.0f}", **options.environ}
    _run(replace(options, environ=environ), [f"--address={options.head}"])


def _run(options: RayOptions, arguments: list[str]) -> None:
    environment = _environment(options)
    make_private_directory(options.temp_dir.parent)
    options.temp_dir.mkdir(exist_ok=True)
    (options.temp_dir / "ray_current_cluster").unlink(missing_ok=True)  # from an earlier start
    try:
        # A file, because the daemons inherit it: a pipe would stay open as long as they live.
        with (options.temp_dir / "start.log").open("wb") as log:
            done = subprocess.run(
                [*_ray_program(), "start", *arguments, *_common(options)],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=_START_S,
                start_new_session=True,
                check=False,
            )
    except subprocess.TimeoutExpired:
        stop(options.owner, options.temp_dir)
        raise FailedPrecondition(f"Ray did not start within {_START_S:g} s; see {options.temp_dir}/start.log") from None
    if done.returncode != 0:
        stop(options.owner, options.temp_dir)
        raise _not_started(options.temp_dir / "start.log")


def stop(owner: str, temp_dir: Path) -> list[ProcessRef]:
    """Stops that owner's Ray with its workers and their children; returns what it found. Idempotent."""
    stopped: list[ProcessRef] = []
    # An ending raylet may still start processes: repeat until there are none.
    while found := processes.of_cluster(owner, temp_dir):
        # The GCS last: the raylet reports its end to it and waits for the answer.
        processes.stop([p for p in found if not _is_gcs(p)], grace_s=_GRACE_S)
        processes.stop(found, grace_s=_GRACE_S)
        stopped += found
    (temp_dir / "ray_current_cluster").unlink(missing_ok=True)
    return stopped


def daemons(owner: str, temp_dir: Path) -> list[ProcessRef]:
    """The raylet and, on the head, the GCS; without either Ray is dead here."""
    return [p for p in processes.of_cluster(owner, temp_dir) if _is_gcs(p) or _is_raylet(p)]


def answers(address: str, timeout_s: float = 2.0) -> bool:
    """Whether something listens at the address."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout_s).close()
    except (OSError, ValueError):
        return False
    return True


def _is_gcs(process: ProcessRef) -> bool:
    return _program(process) == "gcs_server"


def _is_raylet(process: ProcessRef) -> bool:
    return _program(process) == "raylet"


def _program(process: ProcessRef) -> str:
    program = next(iter(processes.command_line(process.pid)), "")
    return program.rpartition("/")[2]


def _common(options: RayOptions) -> list[str]:
    labels = {REGION_LABEL: options.region, ZONE_LABEL: options.zone, **options.labels}
    marks = ",".join(f"{name}={value}" for name, value in labels.items() if value)
    sizes = {
        "num-cpus": options.cpus,
        "num-gpus": options.gpus,
        "memory": None if options.memory is None else options.memory << 20,
    }
    return [
        f"--node-ip-address={options.address}",
        f"--temp-dir={options.temp_dir}",
        "--include-log-monitor=false",  # it costs 50 MB, and only copies workers' output to drivers
        "--disable-usage-stats",
        "--log-color=false",
        "--dashboard-agent-listen-port=0",  # a fixed port would prevent a second one on this machine
        *(f"--{name}={size}" for name, size in sizes.items() if size is not None),
        *([f"--labels={marks}"] if marks else []),
    ]


def _ray_program() -> list[str]:
    """The `ray` command of this Python, whatever the PATH."""
    program = Path(sysconfig.get_path("scripts")) / "ray"
    return [str(program)] if program.is_file() else [sys.executable, "-m", "ray.scripts.scripts"]


def _inherited() -> dict[str, str]:
    return {name: value for name, value in processes.environment().items() if name not in _DROPPED}


def _environment(options: RayOptions) -> dict[str, str]:
    return {
        **_inherited(),
        **loopback_environment(options.address),
        processes.MARK: options.owner,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(options.token_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Its metrics answer every account of the machine, without a token, and nobody but the dashboard reads them.
        "RAY_enable_metrics_collection": "1" if options.dashboard else "0",
        # Ray's monitor counts the page cache as used, and kills workers at 95 %. Sandboxes have limits of their own,
        # and a killed slot would end a sandbox that did nothing wrong.
        "RAY_memory_monitor_refresh_ms": "0",
        # A machine that vanished is dead after five checks 3 s apart, each with a timeout of so much: 40 s, not 65.
        "RAY_health_check_timeout_ms": "5000",
        # Replicas' own lines then go where Serve's go, into files of bounded size.
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # How often Serve looks after the API's replicas, and they report calls, of which they get none: requests come
        # over sockets of their own. Ten times a second, Serve's own choice, takes a fortieth of a core more.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.3",
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
        **options.environ,
    }


def _choose_port(options: HeadOptions) -> int:
    # At any other address than 127.0.0.1 the GCS listens on all of the machine's.
    where = options.address if options.address == LOOPBACK else "::" if ":" in options.address else "0.0.0.0"
    if options.port is not None:
        if not is_free(where, options.port):
            raise InvalidRequest(
                f"port: {options.port} on {options.address} is taken; choose another, or none", field="port"
            )
        return options.port
    free_port(options.address)  # `InvalidRequest` if it is not this machine's
    return DEFAULT_PORT if is_free(where, DEFAULT_PORT) else free_port(where)


def is_free(address: str, port: int) -> bool:
    """Whether the port is free."""
    with socket.socket(_family(address)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def free_port(address: str) -> int:
    """A free port; `InvalidRequest` if the address is not this machine's."""
    with socket.socket(_family(address)) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            raise InvalidRequest(
                f"address: {address} is not an address of this machine ({error.strerror}); `ip address` lists them",
                field="address",
            ) from None
        return int(probe.getsockname()[1])


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _not_started(log: Path) -> ShoalError:
    """What `ray start` wrote about why."""
    lines = log.read_text(errors="replace").splitlines()
    if any(_REFUSED in line for line in lines):
        return _wrong_token()
    last = lines[-1] if lines else "it says nothing"
    reason = next((line.strip() for line in reversed(lines) if "rror" in line), last)[:300]
    return FailedPrecondition(f"Ray does not start: {reason}; see {log}")


def _wrong_token() -> InvalidRequest:
    return InvalidRequest(
        "token: the head refuses it: it is of another cluster, or the head was started anew since; "
        "`shoal node token` there prints the one of now",
        field="token",
    )
