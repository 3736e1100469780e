"""Puts a directory of the node into a container that runs, or takes one from there, without its help, in well under a
millisecond.

The directory is cloned as a mount of its own (`open_tree`), and attached in the container's mount namespace
(`move_mount`). A thread joins a mount namespace only if it shares its root directory with no other (`CLONE_FS`): hence
each such call has a thread of its own (`apart`), which ends with it. In the namespace it sees the container's files
alone: a link there that points anywhere leads to nothing of the node's.

All functions block; `OSError`. Needs Linux 5.6, and 5.12 for what is read-only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)

# The same numbers on x86-64 and arm64.
_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442

_AT_EMPTY_PATH, _AT_FDCWD = 0x1000, -100
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_FROM_EMPTY, _TO_EMPTY = 0x04, 0x40  # MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH
_NO_MAGIC_LINKS, _BENEATH = 0x02, 0x08
_RDONLY, _NOSUID, _NODEV = 0x1, 0x2, 0x4
_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
_RENAME_EXCHANGE = 2
_MNT_DETACH, _UMOUNT_NOFOLLOW, _MNT_FORCE = 2, 8, 1

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def clone(root: Path, sub_path: str, *, read_only: bool) -> int:
    """A mount of the directory, or of one below it, that is nowhere yet: a descriptor, which the caller closes. A
    sub-path is made where it is missing, unless `read_only`, and never leads out of `root`, whatever links are there
    (`EXDEV`)."""
    top = os.open(root, _DIRECTORY)
    try:
        directory = _below(top, sub_path, make=not read_only) if sub_path else os.dup(top)
    finally:
        os.close(top)
    try:
        tree = _clone(directory)
    finally:
        os.close(directory)
    try:
        _restrict(tree, _NOSUID | _NODEV | (_RDONLY if read_only else 0), needed=read_only)
    except OSError:
        os.close(tree)
        raise
    return tree


def apart(body: Callable[[], T]) -> T:
    """What `body` returns or raises, on a thread of its own."""
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            _check(_libc.unshare(_CLONE_FS))  # its working directory, too, is its own
            found.append(body())
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            failed.append(error)

    thread = threading.Thread(target=run, name="shoal-namespace", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def attach(pid: int, tree: int, target: str, *, again: bool = False) -> None:
    """Attaches a cloned mount at `target` in the container of the process; the directory is made where it is missing.
    `again`: in place of what is mounted there. To be called on a thread of its own."""
    _join(pid)
    if again:
        _libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW)  # if there is nothing any more: fine
    os.makedirs(target, mode=0o755, exist_ok=True)
    point = os.open(target, _DIRECTORY)
    try:
        _call(_MOVE_MOUNT, tree, b"", point, b"", ctypes.c_uint(_FROM_EMPTY | _TO_EMPTY))
    finally:
        os.close(point)


def take(pid: int, path: str) -> tuple[int, str]:
    """A mount of a directory of the process's container, as that sees it but for what is mounted below it: a
    descriptor, which the caller closes, and the path without links. To be called on a thread of its own."""
    _join(pid)
    real = os.path.realpath(path)
    directory = os.open(real, _DIRECTORY)
    try:
        return _clone(directory), real
    finally:
        os.close(directory)


def detach(pid: int, target: str) -> None:
    """Takes away what is mounted at `target` in the process's container, if anything is. Who has it open keeps it. To
    be called on a thread of its own."""
    _join(pid)
    if _libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW) != 0:
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):
            raise OSError(number, os.strerror(number), target)


def unmount(point: Path, *, force: bool) -> None:
    """Unmounts a FUSE file system of the node. `force`: whatever uses it or hangs in it gets an error. If nothing is
    mounted there, nothing happens."""
    flags = _UMOUNT_NOFOLLOW | (_MNT_FORCE | _MNT_DETACH if force else 0)
    if _libc.umount2(os.fsencode(point), flags) != 0:
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):
            raise OSError(number, os.strerror(number), str(point))


def exchange(one: Path, other: Path) -> None:
    """Gives each of two files of one file system the name of the other, at once."""
    names = os.fsencode(one), os.fsencode(other)
    _check(_libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE)))


def _join(pid: int) -> None:
    """Puts this thread into the mount namespace of a process, for good."""
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(_CLONE_FS))
        _check(_libc.setns(namespace, _CLONE_NEWNS))
    finally:
        os.close(namespace)


def _clone(directory: int) -> int:
    return _call(_OPEN_TREE, directory, b"", ctypes.c_uint(_AT_EMPTY_PATH | _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC))


def _below(top: int, sub_path: str, *, make: bool) -> int:
    parts = sub_path.split("/")
    for count in range(1, len(parts) + 1):
        path = "/".join(parts[:count])
        try:
            found = _open_beneath(top, path)
        except FileNotFoundError:
            if not make:
                raise
            parent = _open_beneath(top, "/".join(parts[: count - 1]) or ".")
            try:
                os.mkdir(parts[count - 1], 0o777, dir_fd=parent)
            except FileExistsError:
                pass  # somebody was faster
            finally:
                os.close(parent)
            found = _open_beneath(top, path)
        if count == len(parts):
            return found
        os.close(found)
    raise AssertionError("unreachable")


def _open_beneath(top: int, path: str) -> int:
    how = struct.pack("=QQQ", _DIRECTORY, 0, _BENEATH | _NO_MAGIC_LINKS)
    return _call(_OPENAT2, top, os.fsencode(path), how, ctypes.c_size_t(len(how)))


def _restrict(tree: int, flags: int, *, needed: bool) -> None:
    attributes = struct.pack("=QQQQ", flags, 0, 0, 0)
    try:
        _call(
            _MOUNT_SETATTR,
            tree,
            b"",
            ctypes.c_uint(_AT_EMPTY_PATH),
            attributes,
            ctypes.c_size_t(len(attributes)),
        )
    except OSError as error:
        # Older than Linux 5.12. The helper mounted it with nosuid and nodev: only what is read-only needs the call.
        if needed or error.errno != errno.ENOSYS:
            raise


def _call(number: int, *arguments: object) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *arguments))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
