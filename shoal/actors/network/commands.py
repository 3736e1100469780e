"""Runs `ip`, `nft` and other commands, without a shell and with a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.model.errors import FailedPrecondition, Internal

_DEADLINE = 10.0
_SAID = 500

_PACKAGES = {
    "ip": "iproute2",
    "nft": "nftables",
    "iptables": "iptables",
    "nsenter": "util-linux",
    "unshare": "util-linux",
}


@dataclass(frozen=True, slots=True)
class Done:
    """A command's status and output."""

    status: int
    output: str
    errors: str


async def run(*argv: str, given: str = "", inherit: Sequence[int] = ()) -> Done:
    """Runs a command with `given` as its input and the descriptors `inherit`. It is ended with its task, and after 10
    seconds (`Internal`). `FailedPrecondition` if the program is not installed."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            # Ray's workers run on uvloop, which refuses to write, even nothing, to a command that has ended.
            stdin=asyncio.subprocess.PIPE if given else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=inherit,
        )
    except FileNotFoundError as error:
        package = _PACKAGES.get(argv[0], argv[0])
        raise FailedPrecondition(
            f"sandbox networking needs `{argv[0]}`, which is not on this machine; "
            f"install it (Debian: apt-get install {package})",
            state="not installed",
        ) from error
    try:
        async with asyncio.timeout(_DEADLINE):
            output, errors = await process.communicate(given.encode() or None)
    except TimeoutError as error:
        raise Internal(f"`{' '.join(argv)}` did not end within {_DEADLINE:.0f} seconds") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Done(process.returncode or 0, output.decode("utf-8", "replace"), errors.decode("utf-8", "replace"))


async def must(*argv: str, given: str = "", inherit: Sequence[int] = ()) -> str:
    """As `run`, but a status other than 0 raises `FailedPrecondition` for missing rights, else `Internal`."""
    done = await run(*argv, given=given, inherit=inherit)
    if done.status != 0:
        said = done.errors.strip()[:_SAID]
        if "not permitted" in said or "you must be root" in said.lower():
            raise FailedPrecondition(
                f"sandbox networking needs root (CAP_NET_ADMIN): `{argv[0]}` said: {said}; run the node as root, "
                'or create sandboxes with network="none"',
                state="not root",
            )
        raise Internal(f"`{' '.join(argv)}` failed with status {done.status}: {said}")
    return done.output
