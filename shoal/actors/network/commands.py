"""Runs `ip`, `nft` and other commands, without a shell and with a time limit; and what asks the kernel itself."""

from __future__ import annotations

import asyncio
import errno
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shoal.model.errors import FailedPrecondition, Internal
from shoal.model.programs import find

_DEADLINE = 10.0
_SAID = 500

_threads = ThreadPoolExecutor(8, thread_name_prefix="shoal-command")
"""They only wait, and nobody else waits for them."""

_PACKAGES = {
    "ip": "iproute2",
    "nft": "nftables",
    "iptables": "iptables",
    "nsenter": "util-linux",
}


@dataclass(frozen=True, slots=True)
class Done:
    """A command's status and output."""

    status: int
    output: str
    errors: str


async def in_thread(doing: str, body: Callable[[], None]) -> None:
    """Runs a blocking body that asks the kernel; it has ended when its task has. `FailedPrecondition` for missing
    rights, `Internal` for another `OSError`."""
    running = asyncio.get_running_loop().run_in_executor(_threads, body)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise _not_root(doing, str(error)) from error
        raise Internal(f"could not {doing}: {error}") from error


async def run(*argv: str, given: str = "") -> Done:
    """Runs a command with `given` as its input. It is ended with its task, and after 10 seconds (`Internal`).
    `FailedPrecondition` if the program is not installed."""
    command = _Command(argv, given)
    # In a thread, by `subprocess`: on uvloop, which Ray's workers run on, a command would begin with a copy of the
    # whole process. In one of 200 MiB that was seen to take 43 ms in place of 3.
    running = asyncio.get_running_loop().run_in_executor(_threads, command.run)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        command.end()
        await asyncio.wait([running])
        raise


class _Command:
    """One command; `end` may be called from another thread, at any time."""

    def __init__(self, argv: Sequence[str], given: str) -> None:
        self._argv = argv
        self._given = given
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    def run(self) -> Done:
        with self._start() as process:
            self._process = process
            if self._ended:
                process.kill()
            try:
                output, errors = process.communicate(self._given.encode() or None, timeout=_DEADLINE)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise Internal(f"`{' '.join(self._argv)}` did not end within {_DEADLINE:.0f} seconds") from error
        return Done(process.returncode, output.decode("utf-8", "replace"), errors.decode("utf-8", "replace"))

    def end(self) -> None:
        self._ended = True
        if self._process is not None:
            self._process.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                self._argv,
                executable=find(self._argv[0]),
                stdin=subprocess.PIPE if self._given else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except FileNotFoundError as error:
            package = _PACKAGES.get(self._argv[0], self._argv[0])
            raise FailedPrecondition(
                f"sandbox networking needs `{self._argv[0]}`, which is not on this machine; "
                f"install it (Debian: apt-get install {package})",
                state="not installed",
            ) from error


async def must(*argv: str, given: str = "") -> str:
    """As `run`, but a status other than 0 raises `FailedPrecondition` for missing rights, else `Internal`."""
    done = await run(*argv, given=given)
    if done.status != 0:
        said = done.errors.strip()[:_SAID]
        if "not permitted" in said or "you must be root" in said.lower():
            raise _not_root(f"run `{argv[0]}`", said)
        raise Internal(f"`{' '.join(argv)}` failed with status {done.status}: {said}")
    return done.output


def _not_root(doing: str, said: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"sandbox networking needs root (CAP_NET_ADMIN) to {doing}: {said}; run the node as root, "
        'or create sandboxes with network="none"',
        state="not root",
    )
