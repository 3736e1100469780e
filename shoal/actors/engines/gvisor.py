"""gVisor on this machine: where its `runsc` is, how it is called, and whether it runs.

That `/dev/kvm` exists tells nothing: on machines that are virtual themselves, `runsc` may hang on it for ever. So what
was chosen is run once, with a bound, before a sandbox depends on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoal.images.binaries import agent_binary
from shoal.model.errors import ShoalError
from shoal.model.settings import Settings

RUNTIME: Final = "runsc"
"""The name of the runtime in a sandbox's spec."""

_TRY_S = 20.0
"""Of a run that takes a tenth of a second on an idle machine."""
_ASK_S = 10.0


@dataclass(frozen=True, slots=True)
class Gvisor:
    """A `runsc` and how it catches system calls."""

    program: Path
    platform: str

    def command(self, root: Path, *arguments: str) -> list[str]:
        """The command line of one call; `root`: where `runsc` keeps its own state."""
        return [str(self.program), f"--root={root}", *self.flags(), *arguments]

    def flags(self) -> tuple[str, ...]:
        """The flags of every call."""
        return (
            f"--platform={self.platform}",
            # What is written shall be on the sandbox's own disk, where limits, usage and snapshots see it.
            "--overlay2=none",
            # The agent dials the relay's socket. Nothing inside may make a socket that the node could reach.
            "--host-uds=open",
            "--network=sandbox",
            # Without it `runsc` leaves a mount in its directory, for all of them.
            "--gofer-network-namespace=new",
            # Limits may change; what a container may do is the node's to say, and the same for all.
            "--restore-spec-validation=warning",
        )


def find(settings: Settings) -> Gvisor | None:
    """The operator's `runsc` or the one that `shoal up --with-gvisor` built; None if there is none."""
    program = settings.node.runsc or built(settings.state_dir)
    present = settings.node.runsc is not None or program.is_file()
    return Gvisor(program, settings.node.runsc_platform) if present else None


def built(state_dir: Path) -> Path:
    """Where `shoal up --with-gvisor` puts it."""
    return state_dir / "gvisor" / "runsc"


def version(gvisor: Gvisor) -> str:
    """What it calls its version; empty if it does not tell."""
    try:
        done = subprocess.run(
            [gvisor.program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    first = done.stdout.partition("\n")[0]
    return first.removeprefix("runsc version ").strip()


def problem(gvisor: Gvisor) -> str | None:
    """Why it cannot run sandboxes here; None if it can. Runs a program in it once. Blocks."""
    if not os.access(gvisor.program, os.X_OK):
        return f"{gvisor.program} does not exist, or cannot be executed"
    if os.geteuid() != 0:
        return "it can only be tried as root"
    try:
        agent = agent_binary()
    except ShoalError as error:
        return error.message
    with tempfile.TemporaryDirectory(prefix="shoal-gvisor-") as directory:
        return _run_once(gvisor, agent, Path(directory))


def _run_once(gvisor: Gvisor, agent: Path, top: Path) -> str | None:
    bundle, root, output = top / "bundle", top / "state", top / "output"
    (bundle / "rootfs").mkdir(parents=True)
    root.mkdir()
    (bundle / "config.json").write_text(json.dumps(_trial(agent)))
    with output.open("wb") as said:
        process = subprocess.Popen(
            gvisor.command(root, "--ignore-cgroups", "run", "--bundle", str(bundle), "shoal-trial"),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(_TRY_S)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # all of it has ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    _remove(gvisor, root)
    if code == 0:
        return None
    if code is None:
        return f"platform {gvisor.platform}: a program in it did not end within {_TRY_S:g} s"
    lines = output.read_text(errors="replace").splitlines()
    return f"platform {gvisor.platform}: status {code}: {' '.join(lines[-2:])[-300:]}"


def _remove(gvisor: Gvisor, root: Path) -> None:
    """Takes away what a run that was killed has left of its processes."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            gvisor.command(root, "delete", "--force", "shoal-trial"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASK_S,
            check=False,
        )


def _trial(agent: Path) -> dict[str, object]:
    """A bundle without a network that runs the agent's shortest command."""
    return {
        "ociVersion": "1.0.2",
        "process": {"args": ["/agent", "version"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "noNewPrivileges": True},
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/agent", "type": "bind", "source": str(agent), "options": ["bind", "ro"]}],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]},
    }
