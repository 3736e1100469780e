"""Network namespaces that are made ahead, as the kernel makes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.actors.engines.disks import mounts
from shoal.actors.network import namespaces
from shoal.actors.network.commands import in_thread, must

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("as_root")]


async def test_one_is_pinned_with_its_loopback_up_and_no_thread_of_ours_stays_in_it(tmp_path: Path) -> None:
    pin, own = tmp_path / "made" / "pin", os.readlink("/proc/self/ns/net")
    for _ in range(2):  # the second takes the place of the first
        await namespaces.make(pin)
    try:
        told = await must("nsenter", f"--net={pin}", "ip", "-brief", "link")
        assert [line.split()[0] for line in told.splitlines()] == ["lo"]
        assert ",UP," in told
        ours: list[str] = []
        await in_thread("look", lambda: ours.append(os.readlink("/proc/thread-self/ns/net")))
        assert [*ours, os.readlink("/proc/self/ns/net")] == [own, own]
        assert own != f"net:[{pin.stat().st_ino}]"
    finally:
        for _ in range(2):
            await namespaces.remove(pin)
    assert not pin.exists()
    assert pin not in [mount.point for mount in mounts.table()]
