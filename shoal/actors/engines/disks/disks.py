"""Makes, finds and removes containers' own disks.

A disk is an ext4 file system in a sparse file without a name, mounted by a loop device. So the kernel itself refuses
what goes beyond its size (ENOSPC), however it is written, `df` inside tells its size, and removing it takes the same
time whatever is on it. It takes room on the machine as it is written, and gives it back as files are removed.

Nothing can be left behind: the file goes with the loop device, and that with the last mount. Disks are found by the
table of mounts, so whoever comes after a crash can remove them. Blocks: called in an engine's threads.

The disk of a container that is kept has a file with a name, its key, and a journal: unmounted while the container is
stopped, it outlives a restart of the machine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoal.actors.engines.disks import mounts
from shoal.actors.engines.disks.loop import attached, device_of
from shoal.actors.engines.disks.ready import ReadyDisks

_log = logging.getLogger(__name__)

_BLOCK: Final = 4096
_PER_INODE: Final = 16384
"""Bytes for each file that may be made, as ext4 has it on a disk of usual size."""
_LEAST_INODES: Final = 16384
_INODE: Final = 256
_FIXED: Final = 256 << 10
"""What ext4 itself needs, beside its tables of inodes and blocks."""
_KEPT_BACK: Final = 16 << 20
"""What ext4 never gives away, on a small disk a fiftieth."""

# Without a journal: a container's disk does not outlive a crash of the machine, and mounts in a millisecond.
_FEATURES: Final = "^has_journal,^resize_inode"
# Inode tables are empty already, and so need not be written. `barrier=0`: a flush would have to wait for the machine's
# own disk, for data that nobody reads after a crash. `noauto_da_alloc`: nor need a file be written when it is replaced.
_OPTIONS: Final = "noinit_itable,discard,barrier=0,noauto_da_alloc"

_KEPT_FEATURES: Final = "^resize_inode"
_KEPT_OPTIONS: Final = "noinit_itable,discard"
_JOURNAL_MIB: Final = 4
_SUFFIX: Final = ".disk"

_LOOP: Final = "7:"
"""The major number of loop devices."""
_LARGE: Final = 32 << 20
_TEMPLATES: Final = 8
_FORMAT_S: Final = 60.0

_unmounting = ThreadPoolExecutor(8, thread_name_prefix="shoal-unmount")
"""Its threads wait for the machine's disk, and nobody waits for them."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk at `point`, in a directory that only root may enter."""

    point: Path

    def used(self) -> int:
        """Bytes on it."""
        status = os.statvfs(self.point)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def adopt(self, directory: Path, name: str) -> None:
        """From now on `directory` is on this disk, with what it holds. `name`: for use on this disk, once."""
        inside, entries = self.point / name, list(directory.iterdir())
        if any(entry.is_dir() and any(entry.iterdir()) for entry in entries):
            # What an image puts into a volume may be anything.
            subprocess.run(["cp", "-a", "--", directory, inside], check=True, capture_output=True)
        else:
            _copy_entry(directory, inside)
            for entry in entries:
                _copy_entry(entry, inside / entry.name)
        mounts.bind(inside, directory)

    def bind(self, directory: Path, name: str) -> None:
        """`directory` is on this disk again, under the name with which it was adopted."""
        mounts.bind(self.point / name, directory)

    def write(self, name: str, text: str) -> Path:
        """A file on it that everybody may read."""
        path = self.point / name
        path.write_text(text)
        path.chmod(0o644)
        return path


class Disks:
    """The disks of one engine. Their files lie in `directory`, which need not exist."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._templates: OrderedDict[tuple[int, bool], int] = OrderedDict()  # by size, and whether for kept ones
        self._lock = threading.Lock()
        self._ready = ReadyDisks(self._make_nowhere)

    def problem(self) -> str | None:
        """Why this machine can't have such disks, found by making one; None: it can."""
        try:
            with tempfile.TemporaryDirectory(prefix="shoal-") as top:
                point = Path(top, "disk")
                self._make(point, 1 << 20, keep=False)
                mounts.detach(point)
                point.rmdir()
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
        return None

    def make(self, point: Path, size: int, *, keep: bool = False) -> Disk:
        """A new disk that holds `size` bytes, at the directory `point`, which is made. `keep`: it may be unmounted and
        opened again, until `forget`. If it raises (`OSError`, `SubprocessError`), there is none."""
        ready = None if keep else self._ready.take(size)
        if ready is None:
            return self._make(point, size, keep=keep)
        try:
            return _at(point, lambda: mounts.place(ready, point))
        finally:
            os.close(ready)

    def _make_nowhere(self, size: int) -> int:
        with self._template(size, keep=False) as template, _unnamed(self._directory) as file:
            _copy_data(template, file)
            with attached(file) as device:
                return mounts.disk_nowhere(device, _OPTIONS)

    def _make(self, point: Path, size: int, *, keep: bool) -> Disk:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._template(size, keep) as template, _unnamed(self._directory) as file:
            _copy_data(template, file)
            if not keep:
                return self._mount_at(point, file, _OPTIONS)
            os.fsync(file)
            # With a directory, though the path is absolute: else Python does not follow the link to the file.
            os.link(f"/proc/self/fd/{file}", self.file_of(point.name), src_dir_fd=file, follow_symlinks=True)
        try:
            return self.open(point)
        except OSError:
            self.forget(point.name)
            raise

    def open(self, point: Path) -> Disk:
        """Mounts a disk that was kept, unless it is mounted. `OSError`; `FileNotFoundError` if there is none."""
        found = find(point.name)
        if found is not None:
            return found
        path = self.file_of(point.name)
        device = device_of(path)
        if device is not None:  # another one over the same file would destroy it
            return _mount(device, point, _KEPT_OPTIONS)
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return self._mount_at(point, file, _KEPT_OPTIONS)
        finally:
            os.close(file)

    def file_of(self, key: str) -> Path:
        """Where the disk of that name lies, if it is kept."""
        return self._directory / f"{key}{_SUFFIX}"

    def forget(self, key: str) -> None:
        """Removes the file of a disk that was kept; it goes with its last mount. Idempotent."""
        self.file_of(key).unlink(missing_ok=True)

    def forget_all_but(self, keys: Collection[str]) -> None:
        """Removes the files of all others that were kept."""
        for file in self._directory.glob(f"*{_SUFFIX}"):
            if file.name.removesuffix(_SUFFIX) not in keys:
                file.unlink(missing_ok=True)

    def _mount_at(self, point: Path, file: int, options: str) -> Disk:
        with attached(file) as device:
            return _mount(device, point, options)

    def close(self) -> None:
        """Forgets what it keeps for the next disks. Disks stay. Idempotent."""
        self._ready.close()
        with self._lock:
            while self._templates:
                os.close(self._templates.popitem()[1])

    @contextmanager
    def _template(self, size: int, keep: bool) -> Iterator[int]:
        """A formatted file for disks of that size. Formatting one starts a process, copying does not."""
        whole = os.statvfs(self._directory)
        inside = min(size, whole.f_blocks * whole.f_frsize)  # what the machine has not, no disk can hold
        with self._lock:
            wanted = (inside, keep)
            if wanted not in self._templates:
                self._templates[wanted] = self._format(inside, keep)
            self._templates.move_to_end(wanted)
            while len(self._templates) > _TEMPLATES:
                os.close(self._templates.popitem(last=False)[1])
            file = os.dup(self._templates[wanted])
        try:
            yield file
        finally:
            os.close(file)

    def _format(self, size: int, keep: bool) -> int:
        inodes = max(size // _PER_INODE, _LEAST_INODES)
        total = size + inodes * _INODE + size // 8192 + min(size // 48, _KEPT_BACK) + _FIXED
        features, journal = _FEATURES, []
        if keep:
            features, journal = _KEPT_FEATURES, ["-J", f"size={_JOURNAL_MIB}"]
            total += _JOURNAL_MIB << 20
        program = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if program is None:
            raise FileNotFoundError("mkfs.ext4 is not on this machine: install e2fsprogs")
        with _unnamed(self._directory) as file:
            os.truncate(file, -(-total // _BLOCK) * _BLOCK)
            command = [program, "-q", "-F", "-O", features, "-b", str(_BLOCK), "-I", str(_INODE), "-N", str(inodes)]
            command += [
                *journal,
                "-m",
                "0",
                "-E",
                "nodiscard,lazy_itable_init=1,root_owner=0:0",
                f"/proc/self/fd/{file}",
            ]
            subprocess.run(command, pass_fds=[file], check=True, capture_output=True, timeout=_FORMAT_S)
            return os.dup(file)


def find(key: str) -> Disk | None:
    """The disk whose directory has the name `key`."""
    entries = mounts.table(having=key)
    found = [entry.point for entry in entries if entry.point.name == key and entry.device.startswith(_LOOP)]
    return Disk(found[0]) if found else None


def release(disk: Disk) -> None:
    """Takes it from the directories that it adopted. Whatever runs on it keeps it. Idempotent."""
    for point in _points(disk):
        if point != disk.point:
            mounts.detach(point)


def unmount(disk: Disk) -> None:
    """Writes a kept disk to the machine's, and unmounts it. Nothing may run on it any more. `OSError`."""
    file = os.open(disk.point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mounts.sync(file)
    finally:
        os.close(file)
    release(disk)
    mounts.detach(disk.point)
    disk.point.rmdir()


def remove(disk: Disk) -> None:
    """Removes it, which goes on after the call: the machine's own disk may be busy. Nothing may run on it any more.
    Idempotent."""
    release(disk)
    _unmounting.submit(_unmount, disk)


def sweep(directory: Path, keep: Callable[[], Collection[str]]) -> None:
    """Removes the disks mounted in `directory` whose names are none of `keep()`, asked after the disks were found."""
    found = [entry.point for entry in mounts.table() if entry.point.parent == directory]
    kept = keep() if found else ()
    for point in found:
        if point.name not in kept:
            remove(Disk(point))


def wait_until_gone(directory: Path, seconds: float = 10.0) -> bool:
    """Waits until no disk is mounted in `directory`; whether that is so."""
    deadline = time.monotonic() + seconds
    while any(entry.point.parent == directory for entry in mounts.table()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _mount(device: str, point: Path, options: str) -> Disk:
    return _at(point, lambda: mounts.mount_disk(device, point, options))


def _at(point: Path, mount: Callable[[], None]) -> Disk:
    point.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        mount()
    except OSError:
        point.rmdir()
        raise
    point.chmod(0o700)
    return Disk(point)


def _unmount(disk: Disk) -> None:
    try:
        with contextlib.suppress(OSError):  # it is removed all the same
            _forget_unwritten(disk)
        mounts.detach(disk.point)
        disk.point.rmdir()
    except FileNotFoundError:
        pass  # by somebody else, meanwhile
    except OSError as error:
        _log.warning("the disk at %s is not removed yet: %s", disk.point, error)


def _forget_unwritten(disk: Disk) -> None:
    """Spares the machine writing what nobody will read: else unmounting waits for it, a second for a gigabyte. The
    kernel's log has a line of each, so this is for large disks."""
    if disk.used() < _LARGE:
        return
    file = os.open(disk.point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        device = os.fstat(file).st_dev
        # Never another file system: what is here must be of a loop device, and begin here.
        if f"{os.major(device)}:" == _LOOP and device != disk.point.parent.stat().st_dev:
            mounts.shut_down(file)
    finally:
        os.close(file)


def _points(disk: Disk) -> list[Path]:
    """Where its file system is mounted, the latest first."""
    text = mounts.table_text()
    device = next((entry.device for entry in mounts.table(text, disk.point.name) if entry.point == disk.point), None)
    if device is None:
        return []
    return [entry.point for entry in reversed(mounts.table(text, device)) if entry.device == device]


@contextmanager
def _unnamed(directory: Path) -> Iterator[int]:
    """A file that goes with its last user."""
    file = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def _copy_data(source: int, target: int) -> None:
    """Copies what is written of a sparse file."""
    size = os.fstat(source).st_size
    os.truncate(target, size)
    begin = 0
    while begin < size:
        try:
            begin = os.lseek(source, begin, os.SEEK_DATA)
        except OSError:  # only holes follow
            return
        end = os.lseek(source, begin, os.SEEK_HOLE)
        os.pwrite(target, os.pread(source, end - begin, begin), begin)
        begin = end


def _copy_entry(source: Path, target: Path) -> None:
    """An empty directory, or a file, with its owner and mode."""
    status = source.stat()
    if source.is_dir():
        target.mkdir()
    else:
        target.write_bytes(source.read_bytes())
    os.chown(target, status.st_uid, status.st_gid)
    target.chmod(status.st_mode & 0o7777)
