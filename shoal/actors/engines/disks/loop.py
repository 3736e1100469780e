"""Loop devices: files as block devices."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

# Numbers and layouts from <linux/loop.h>.
_CONTROL: Final = "/dev/loop-control"
_GET_FREE: Final = 0x4C82
_CONFIGURE: Final = 0x4C0A
_MAJOR: Final = 7
_AUTOCLEAR: Final = 4
_DIRECT_IO: Final = 16
_CONFIG: Final = struct.Struct("=II 5Q 4I 64s 64s 32s 2Q 64x")

_TRIES: Final = 64
"""Another process may take the free device first."""


def device_of(path: Path) -> str | None:
    """The path of the loop device over the file at `path`, if one is."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it was freed meanwhile
            if backing.read_text("utf-8", "surrogateescape").rstrip("\n") == str(path):
                return f"/dev/{backing.parts[-3]}"
    return None


@contextmanager
def attached(file: int) -> Iterator[str]:
    """The path of a loop device over an open file, past the page cache. It is free again as soon as nobody uses it:
    after the block, or once what was mounted from it is unmounted, even if this process is killed. `OSError`."""
    path, device = _attach(file)
    try:
        yield path
    finally:
        os.close(device)


def _attach(file: int) -> tuple[str, int]:
    config = _CONFIG.pack(file, 0, 0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR | _DIRECT_IO, b"", b"", b"", 0, 0)
    for _ in range(_TRIES):
        path = _free()
        device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(device, _CONFIGURE, config)
        except OSError as error:
            os.close(device)
            if error.errno != errno.EBUSY:
                raise
        else:
            return path, device
    raise OSError(errno.EBUSY, "all loop devices are taken before they can be used", _CONTROL)


def _free() -> str:
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        number = fcntl.ioctl(control, _GET_FREE)
    finally:
        os.close(control)
    path = f"/dev/loop{number}"
    if not os.path.exists(path):
        # In a container with a `/dev` of its own nobody makes the new device's node.
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(_MAJOR, number))
    return path
