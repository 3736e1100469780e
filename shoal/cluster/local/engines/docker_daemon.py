"""Docker daemons of this machine: the one that runs, or one of Shoal's own.

Shoal's own keeps images in `<state_dir>/engine` and its sockets below `<run_dir>`, reads no configuration but ours, and
makes no network: no bridge, no packet rules, no forwarding. All of that is the node's.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shoal.cluster.local import packages, processes
from shoal.model import programs
from shoal.model.cluster_file import ProcessRef
from shoal.model.errors import FailedPrecondition, InvalidRequest, Unavailable
from shoal.model.report import Report
from shoal.model.sockets import LONGEST_PATH

USUAL_ADDRESS = "unix:///var/run/docker.sock"

_START_S = 60.0
_STOP_S = 20.0
_SERVICE_S = 10.0


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon that answers at `address`. `process`: set if it is Shoal's own."""

    address: str
    process: ProcessRef | None = None


def answers(address: str, timeout_s: float = 3.0) -> bool:
    """Whether a Docker engine answers a ping: directly at a `unix:` address, else by the SDK."""
    if not address.startswith("unix://"):
        return _answers_remote(address, timeout_s)
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(timeout_s)
        try:
            link.connect(address.removeprefix("unix://"))
            link.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            response = http.client.HTTPResponse(link)
            response.begin()
        except (OSError, http.client.HTTPException):
            return False
        return response.status == 200


def _answers_remote(address: str, timeout_s: float) -> bool:
    import docker
    import requests

    try:
        client = docker.DockerClient(base_url=address, timeout=timeout_s, version="auto")
    except (docker.errors.DockerException, requests.RequestException, ValueError):
        return False
    client.close()
    return True


def running(configured: str | None, environ: Mapping[str, str]) -> str | None:
    """The address of an engine that is not ours: the configured one, `DOCKER_HOST`, or the usual one.

    One that somebody named and that does not answer is an `Unavailable`, not a reason to start another.
    """
    for name, address in (("engine_address", configured), ("DOCKER_HOST", environ.get("DOCKER_HOST"))):
        if address:
            if answers(address):
                return address
            raise Unavailable(f"{name}: no Docker engine answers at {address}; start it, or unset {name}")
    return USUAL_ADDRESS if answers(USUAL_ADDRESS) else None


def ensure(configured: str | None, state_dir: Path, run_dir: Path, report: Report) -> Daemon:
    """The engine that runs, or one of our own, installed and started if necessary.

    `configured`: an address to use and no other. Named so, our own's (`own_address`) means that it shall be our own.
    """
    wants_own = configured == own_address(run_dir)
    address = None if wants_own else running(configured, os.environ)
    if address is not None:
        return Daemon(address)
    packages.ensure(packages.ENGINE_PROGRAMS, report)
    if os.geteuid() != 0:
        raise FailedPrecondition(
            "no Docker engine answers, and only root can start one; start Docker, or run `shoal up` as root"
        )
    if not wants_own and _service_came_up():  # the installation may have started it
        return Daemon(USUAL_ADDRESS)
    with report("Starting a Docker engine"):
        return start(state_dir, run_dir)


def stop(engine: ProcessRef) -> None:
    """Stops an engine of our own, containerd included."""
    children = processes.descendants(engine.pid) if processes.alive(engine) else []  # container shims belong to init
    processes.stop([engine], grace_s=_STOP_S)
    processes.stop(children, grace_s=2.0)


def forget(run_dir: Path) -> None:
    """Removes what a stopped engine leaves below `run_dir`."""
    for name in ("engine.sock", "engine.pid", "engine.json"):
        (run_dir / name).unlink(missing_ok=True)
    shutil.rmtree(run_dir / "engine", ignore_errors=True)


def own_address(run_dir: Path) -> str:
    return f"unix://{run_dir}/engine.sock"


def listener(address: str) -> int:
    """The process that listens at a `unix:` address; 0 for another one."""
    if not address.startswith("unix://"):
        return 0
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(address.removeprefix("unix://"))
        pid, _, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


def leftover(run_dir: Path) -> ProcessRef | None:
    """Our own engine, found by its pid file, if it runs though no cluster file names it."""
    try:
        pid = int((run_dir / "engine.pid").read_text())
    except (OSError, ValueError):
        return None
    command = " ".join(processes.command_line(pid))
    return processes.ref(pid) if "dockerd" in command and str(run_dir) in command else None


def _service_came_up() -> bool:
    if not Path("/run/systemd/system").exists():
        return answers(USUAL_ADDRESS)
    deadline = time.monotonic() + _SERVICE_S
    while time.monotonic() < deadline:
        if answers(USUAL_ADDRESS):
            return True
        time.sleep(0.25)
    return False


def start(state_dir: Path, run_dir: Path) -> Daemon:
    """Our own engine: the one that runs, or a new one, which adopts the last one's containers."""
    adopted = leftover(run_dir)
    address = own_address(run_dir)
    if adopted is not None and answers(address):
        return Daemon(address, adopted)
    if adopted is not None:
        stop(adopted)
    sockets = run_dir / "engine"
    if len(f"{sockets}/containerd/containerd-debug.sock") > LONGEST_PATH:
        raise InvalidRequest(
            f"run_dir: {run_dir} is too long for sockets below it; use a shorter path such as /run/shoal",
            field="run_dir",
        )
    for directory in (state_dir, run_dir):
        directory.mkdir(parents=True, exist_ok=True)
    (run_dir / "engine.pid").unlink(missing_ok=True)
    _mount_cgroups()
    configuration = run_dir / "engine.json"
    configuration.write_text(json.dumps(_configuration(state_dir, run_dir), indent=2))
    log = state_dir / "engine.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [programs.find("dockerd") or "dockerd", f"--config-file={configuration}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
            env={**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"},
        )
    deadline = time.monotonic() + _START_S
    while not answers(address, 1.0):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise FailedPrecondition(f"the Docker engine does not start; {log} ends with: {_tail(log)}")
        time.sleep(0.05)
    started = processes.ref(process.pid)
    if started is None:
        raise FailedPrecondition(f"the Docker engine ended right after its start; {log} ends with: {_tail(log)}")
    process.returncode = 0  # it shall outlive us: avoids a warning that it still runs
    return Daemon(address, started)


_DEFAULT_BRIDGE = "docker0"


def _configuration(state_dir: Path, run_dir: Path) -> dict[str, object]:
    return {
        "data-root": str(state_dir / "engine"),
        "exec-root": str(run_dir / "engine"),
        "pidfile": str(run_dir / "engine.pid"),
        "hosts": [own_address(run_dir)],
        # With `none`, Docker removes `docker0`, which another Docker on this machine may use: then name that bridge.
        "bridge": _DEFAULT_BRIDGE if Path("/sys/class/net", _DEFAULT_BRIDGE).exists() else "none",
        "iptables": False,
        "ip-forward": False,
        "ip-masq": False,
        "userland-proxy": False,
        "live-restore": True,  # sandboxes outlive a crash of the engine
    }


def _mount_cgroups() -> None:
    """Mounts control groups, which containers need, if the machine's init has not."""
    mounts = Path("/proc/self/mounts").read_text()
    if any(line.split()[2] in ("cgroup", "cgroup2") for line in mounts.splitlines()):
        return
    done = subprocess.run(
        [programs.find("mount") or "mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise FailedPrecondition(f"control groups are not mounted, and cannot be: {done.stderr.strip()}")


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").splitlines()
    return " | ".join(lines[-3:])
