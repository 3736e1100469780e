"""Mounts and unmounts without starting a process, and reads the table of mounts."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shoal.actors.engines.kernel_files import read_kernel

_libc = ctypes.CDLL(None, use_errno=True)

_MS_NOSUID, _MS_NODEV, _MS_BIND = 2, 4, 4096
_MNT_DETACH = 2

# The same numbers on x86-64 and arm64; from <linux/mount.h>, where NOSUID and NODEV have the numbers above, too.
_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 429, 430, 431, 432
_CLOEXEC, _FROM_EMPTY, _AT_FDCWD = 1, 4, -100
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_SHUT_DOWN, _WITHOUT_WRITING = 0x8004587D, 2  # from <linux/fs.h> and the kernel's fs/ext4/ext4.h
_OVERLAY = 0x794C7630  # from <linux/magic.h>
_GONE = 22  # EINVAL: nothing is mounted there
_LONGEST_OPTIONS, _LONGEST_VALUE = 4095, 255
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of the table. `device`: `major:minor` of the file system."""

    device: str
    point: Path


def mount_disk(device: str, point: Path, options: str) -> None:
    """Mounts an ext4 file system; `OSError`."""
    _mount(device, point, "ext4", _MS_NOSUID | _MS_NODEV, options)


def disk_nowhere(device: str, options: str) -> int:
    """Mounts an ext4 file system nowhere yet: a descriptor, with whose last copy it goes unless it has been given a
    place. Needs Linux 5.2; `OSError`."""
    named = (option.partition("=") for option in options.split(","))
    return _nowhere("ext4", [("source", device), *((name, value) for name, _, value in named)])


def place(mounted: int, point: Path) -> None:
    """Gives what is mounted nowhere its place. `OSError`."""
    _call(_MOVE_MOUNT, mounted, b"", _AT_FDCWD, os.fsencode(point), ctypes.c_uint(_FROM_EMPTY))


def in_memory(point: Path, options: str) -> None:
    """Mounts a new file system in memory; `OSError`."""
    _mount("tmpfs", point, "tmpfs", _MS_NOSUID | _MS_NODEV, options)


def bind(source: Path, point: Path) -> None:
    """Makes `source` appear at `point`, too; `OSError`."""
    _mount(str(source), point, "", _MS_BIND, "")


# What is changed lies whole in `upper`, so that a layer can be made of it: a directory that was moved is copied there,
# not redirected to, and so is a file whose owner was changed.
_WHOLE = ("redirect_dir=off", "metacopy=off", "index=off")


def overlay(point: Path, lower: Sequence[Path], upper: Path, work: Path) -> None:
    """Mounts the directories `lower`, uppermost first, with `upper` above them, to which all writes go. `OSError`.

    The kernel tells the options to everybody who sees the mount, so they name descriptors instead of paths."""
    opened: list[int] = []
    try:
        opened.extend(os.open(directory, _DIRECTORY) for directory in (upper, work, *lower))
        names = [f"/proc/self/fd/{number}" for number in opened]
        options = ",".join((f"lowerdir={':'.join(names[2:])}", f"upperdir={names[0]}", f"workdir={names[1]}", *_WHOLE))
        if len(options) > _LONGEST_OPTIONS:
            raise OSError(errno.ENAMETOOLONG, "too many layers for one mount", str(point))
        _mount("overlay", point, "overlay", 0, options)
    finally:
        for number in opened:
            os.close(number)


def overlay_nowhere(lower: Sequence[Path], upper: Path, work: Path) -> int:
    """Mounts the same nowhere yet: a descriptor, with whose last copy it goes unless it has been given a place. To be
    called on a thread that shares its working directory with no other, and is not used again. Needs Linux 5.2;
    `OSError` (ENAMETOOLONG): too many layers for one mount of this kernel."""
    os.chdir("/proc/thread-self/fd")  # a name is the number of a descriptor: the kernel takes few characters
    opened: list[int] = []
    try:
        opened.extend(os.open(directory, _DIRECTORY) for directory in (upper, work, *lower))
        names = [str(number) for number in opened]
        below = ":".join(names[2:])
        layers = [("lowerdir", below)]
        if len(below) > _LONGEST_VALUE:
            layers = [("lowerdir+", name) for name in names[2:]]  # since Linux 6.8
        options = [*layers, ("upperdir", names[0]), ("workdir", names[1]), *(each.split("=") for each in _WHOLE)]
        try:
            return _nowhere("overlay", options)
        except OSError as error:
            if len(layers) > 1 and error.errno == errno.EINVAL:
                raise OSError(errno.ENAMETOOLONG, "too many layers for one mount") from error
            raise
    finally:
        for number in opened:
            os.close(number)


def is_overlay(file: int) -> bool:
    """Whether an open file is of an overlay. `OSError`."""
    found = (ctypes.c_long * 32)()  # a `struct statfs` is smaller, and begins with the kind
    if _libc.fstatfs(file, found) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return found[0] == _OVERLAY


def detach(point: Path) -> None:
    """Takes away what is mounted at `point`, with all that is mounted below. Who has it open keeps it. Idempotent."""
    if _libc.umount2(os.fsencode(point), _MNT_DETACH) != 0:
        number = ctypes.get_errno()
        if number != _GONE and os.path.lexists(point):
            raise OSError(number, os.strerror(number), str(point))


def sync(file: int) -> None:
    """Writes all that is unwritten of the file system of an open directory; `OSError`."""
    if _libc.syncfs(file) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def shut_down(file: int) -> None:
    """Ends the file system of an open directory at once: nothing is written or read any more. `OSError`."""
    fcntl.ioctl(file, _SHUT_DOWN, struct.pack("=I", _WITHOUT_WRITING))


def table(text: str | None = None, having: str = "") -> list[MountEntry]:
    """The mounts that this process sees, in the order in which they were made. `having`: only those whose lines have
    this in them, since there are hundreds."""
    lines = [line for line in (table_text() if text is None else text).splitlines() if having in line]
    # The kernel writes spaces and the like as octal escapes.
    return [
        MountEntry(fields[2], Path(_OCTAL.sub(lambda m: chr(int(m[1], 8)), fields[4])))
        for fields in (line.split(" ") for line in lines)
        if len(fields) > 4
    ]


def table_text() -> str:
    """The same as the kernel writes it."""
    return read_kernel("/proc/self/mountinfo")


def _mount(source: str, point: Path, kind: str, flags: int, options: str) -> None:
    arguments = (os.fsencode(source), os.fsencode(point), kind.encode(), ctypes.c_ulong(flags), options.encode())
    if _libc.mount(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(point))


def _nowhere(kind: str, options: Iterable[Sequence[str]]) -> int:
    """Mounts a file system nowhere. An option without a value is a flag."""
    context = _call(_FSOPEN, kind.encode(), ctypes.c_uint(_CLOEXEC))
    try:
        for name, value in options:
            if value:
                _call(_FSCONFIG, context, ctypes.c_uint(_SET_STRING), name.encode(), os.fsencode(value), 0)
            else:
                _call(_FSCONFIG, context, ctypes.c_uint(_SET_FLAG), name.encode(), None, 0)
        _call(_FSCONFIG, context, ctypes.c_uint(_CREATE), None, None, 0)
        return _call(_FSMOUNT, context, ctypes.c_uint(_CLOEXEC), ctypes.c_uint(_MS_NOSUID | _MS_NODEV))
    finally:
        os.close(context)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
