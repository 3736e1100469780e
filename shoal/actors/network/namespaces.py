"""Network namespaces that the node makes ahead, for runtimes that read their network once, when they start.

A namespace is pinned by a file that it is mounted on. It serves one start: a runtime with a network stack of its own
has taken the addresses out of it.
"""

from __future__ import annotations

from pathlib import Path

from shoal.actors.engines.disks import mounts
from shoal.actors.network import netlink
from shoal.actors.network.commands import in_thread


async def make(pin: Path) -> None:
    """A new namespace, whose loopback is up, in place of the one that was pinned there."""
    await in_thread("make a network namespace", lambda: _make(pin))


async def remove(pin: Path) -> None:
    """Unpins a namespace; it ends with the last process in it. Idempotent."""
    await in_thread("remove a network namespace", lambda: _remove(pin))


def _make(pin: Path) -> None:
    _remove(pin)
    pin.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    pin.touch()
    netlink.elsewhere(lambda: _pin_new(pin))


def _pin_new(pin: Path) -> None:
    netlink.enter_new_namespace()
    mounts.bind(Path("/proc/thread-self/ns/net"), pin)


def _remove(pin: Path) -> None:
    mounts.detach(pin)
    pin.unlink(missing_ok=True)
