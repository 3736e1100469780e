"""The table of mounts. What disks do is tested with an engine: `tests/integration/test_disk_limit.py`."""

from __future__ import annotations

from pathlib import Path

from shoal.actors.engines.disks.mounts import MountEntry, table

TEXT = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 7:3 / /run/shoal/a\\040b/d/c-one rw,nosuid,nodev - ext4 /dev/loop3 rw
31 22 7:3 /tree-0 /var/lib/engine/overlay2/\\134x rw - ext4 /dev/loop3 rw
"""


def test_mounts_are_read_with_any_name() -> None:
    assert table(TEXT) == [
        MountEntry("254:0", Path("/")),
        MountEntry("7:3", Path("/run/shoal/a b/d/c-one")),
        MountEntry("7:3", Path("/var/lib/engine/overlay2/\\x")),
    ]
