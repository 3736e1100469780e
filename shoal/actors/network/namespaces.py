"""Network namespaces that the node makes ahead, for runtimes that read their network once, when they start.

A namespace is pinned by a file that it is mounted on. It serves one start: a runtime with a network stack of its own
has taken the addresses out of it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from shoal.actors.network.commands import must, run


async def make(pin: Path) -> None:
    """A new namespace, whose loopback is up, in place of the one that was pinned there."""
    await remove(pin)
    await asyncio.to_thread(_prepare, pin)
    await must("unshare", f"--net={pin}", "ip", "link", "set", "lo", "up")


async def remove(pin: Path) -> None:
    """Unpins a namespace; it ends with the last process in it. Idempotent."""
    if await asyncio.to_thread(_is_namespace, pin):
        await run("umount", "--lazy", str(pin))
    await asyncio.to_thread(pin.unlink, missing_ok=True)


def _prepare(pin: Path) -> None:
    pin.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    pin.touch()


def _is_namespace(pin: Path) -> bool:
    """A pinned one lies on another file system than the directory that it is in."""
    try:
        return pin.stat().st_dev != pin.parent.stat().st_dev
    except FileNotFoundError:
        return False
