"""The programs that start containers, and how they are called. Blocks: called in the engine's threads.

They keep their own state of a container below `<root>/<key>`, which must be short: there are sockets in it.
"""

from __future__ import annotations

import json
import logging
import os
import select
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from shoal.actors.engines.gvisor import RUNTIME as RUNSC
from shoal.actors.engines.gvisor import Gvisor
from shoal.actors.engines.gvisor import problem as gvisor_problem
from shoal.actors.engines.oci.sealed import SealedPrograms
from shoal.model.errors import FailedPrecondition, Internal, ShoalError, Unavailable

_log = logging.getLogger(__name__)

_SEARCHED: Final = ":/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_RUN_S: Final = 60.0
_SAID: Final = 500


@dataclass(frozen=True, slots=True)
class Runtime:
    """`name`: what a `ContainerSpec` calls it; `program`: what is started; `flags`: before its command; `directory`:
    where in the engine's state it keeps its own; `environment`: of the command, beside its path; `copies_itself`:
    unless it is executed from sealed memory (`sealed.py`)."""

    name: str
    program: str
    flags: tuple[str, ...] = ()
    directory: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    copies_itself: bool = False


RUNC: Final = Runtime("runc", "runc", environment=(("GOMAXPROCS", "1"), ("GOGC", "off")), copies_itself=True)
"""The default. One thread and no collection of garbage, for a program that lives 30 ms: 5 of its 33 ms of CPU."""


def found(gvisor: Gvisor | None = None) -> dict[str, Runtime]:
    """Those that are on this machine, by name, with the paths of their programs; the default first, if it is there.
    `gvisor`: tried, and left out if it does not run."""
    runtimes = {}
    path = shutil.which(RUNC.program, path=_search_path())
    if path is not None:
        runtimes[RUNC.name] = replace(RUNC, program=path)
    if gvisor is not None:
        why = gvisor_problem(gvisor)
        if why is None:
            # Neither gVisor's kernel nor its gofer, which live as long as the container, gets this from its commands.
            one_thread = (("GOMAXPROCS", "1"),)
            runtimes[RUNSC] = Runtime(RUNSC, str(gvisor.program), gvisor.flags(), RUNSC, one_thread)
        else:
            _log.warning("no sandbox runs in gVisor here: %s", why)
    return runtimes


def run(
    runtime: Runtime,
    state: Path,
    key: str,
    bundle: Path,
    sealed: SealedPrograms,
    memory: Path | None = None,
    *,
    lazy: bool = False,
) -> int:
    """Starts the container that `bundle/config.json` describes, or has it go on with `memory`; the pid of its first
    process. `lazy`: before all of its memory is read, so that it ends where that cannot be read. Raises the runtime's
    error, after which there may be something of it."""
    log, pid_file = _said(state, key)
    root = state / runtime.directory
    root.mkdir(mode=0o700, exist_ok=True)
    options = ["--root", str(root), "--log", str(log), "--log-format", "json"]
    verb = ["run"] if memory is None else ["restore", f"--image-path={memory}"]
    if lazy:
        verb.append("--background")
    command = [runtime.program, *runtime.flags, *options, *verb, "--detach"]
    command += ["--bundle", str(bundle), "--pid-file", str(pid_file), key]
    try:
        with sealed.of(runtime.program) if runtime.copies_itself else nullcontext(runtime.program) as executable:
            # No pipes: the container's processes would inherit them.
            process = subprocess.Popen(
                command,
                executable=executable,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PATH": _search_path(), **dict(runtime.environment)},
                cwd="/",
            )
    except OSError as error:
        raise FailedPrecondition(f"{runtime.program} cannot be run: {error}; run `shoal doctor`") from error
    if not _ends(process, _RUN_S):
        raise Unavailable(f"{runtime.name} has not started container {key} within {_RUN_S:g} s")
    if process.returncode != 0:
        raise _failure(key, runtime, log)
    pid = int(pid_file.read_text())
    _forget_said(state, key)
    return pid


def _said(state: Path, key: str) -> tuple[Path, Path]:
    """What a runtime tells of a start: its log, and the pid of the container's first process."""
    return state / f"{key}.log", state / f"{key}.pid"


def _forget_said(state: Path, key: str) -> None:
    for file in _said(state, key):
        file.unlink(missing_ok=True)


def _ends(process: subprocess.Popen[bytes], within_s: float) -> bool:
    """Whether a process ends in time; else it is killed. `subprocess` itself would look again and again, at last every
    50 ms."""
    descriptor = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        ended = bool(poll.poll(1000 * within_s))
    finally:
        os.close(descriptor)
    if not ended:
        process.kill()
    process.wait()
    return ended


def pause(runtime: Runtime, state: Path, key: str) -> None:
    """Stops what runs in a container of gVisor's, by its own kernel, which goes on."""
    _tell(runtime, state, "pause", key)


def resume(runtime: Runtime, state: Path, key: str) -> None:
    """Lets it go on."""
    _tell(runtime, state, "resume", key)


def save_memory(runtime: Runtime, state: Path, key: str, directory: Path) -> None:
    """Writes the memory of a container that is paused; it stays as it is."""
    _tell(runtime, state, "checkpoint", "--leave-running", f"--image-path={directory}", key)


def _tell(runtime: Runtime, state: Path, *arguments: str) -> None:
    command = [runtime.program, *runtime.flags, "--root", str(state / runtime.directory), *arguments]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd="/",
            timeout=_RUN_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"`{runtime.name} {arguments[0]}` did not end within {_RUN_S:g} s") from error
    if done.returncode != 0:
        raise Internal(f"`{runtime.name} {arguments[0]}` failed: {done.stderr.strip()[-_SAID:]}")


def forget(state: Path, key: str) -> None:
    """Removes what a runtime keeps of a container in which nothing runs any more. Idempotent."""
    _forget_said(state, key)
    shutil.rmtree(state / key, ignore_errors=True)
    if (state / RUNSC).exists():
        for file in (state / RUNSC).glob(f"*{key}*"):  # its state, its lock, its socket
            file.unlink(missing_ok=True)


def write_config(bundle: Path, config: Mapping[str, Any]) -> None:
    (bundle / "config.json").write_text(json.dumps(config))


def mounted(bundle: Path) -> tuple[str, ...]:
    """Where something is mounted in a bundle's container, without leading slashes."""
    config = json.loads((bundle / "config.json").read_text())
    return tuple(mount["destination"].strip("/") for mount in config["mounts"])


def _search_path() -> str:
    return os.environ.get("PATH", "") + _SEARCHED


def _failure(key: str, runtime: Runtime, log: Path) -> ShoalError:
    said = _last_error(log)
    hint = "; check that the agent is a static executable for this machine" if "exec" in said or "mount" in said else ""
    return Internal(f"{runtime.name} could not start container {key}: {said[:_SAID]}{hint}")


def _last_error(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "it does not say why"
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal"):
            return str(entry.get("msg", ""))
    return lines[-1] if lines else "it does not say why"
