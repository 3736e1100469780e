"""Images in containers that run: each is an overlay of its layers, with a directory of the container's own above them.
Blocks: called in the engine's threads.

Such an overlay is mounted nowhere on the machine, but in the container's mount namespace alone, and so ends with that.
What holds its layers, and where is written, is on the container's record before it is mounted, and goes with it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from shoal.actors.engines import mount_namespaces
from shoal.actors.engines.contract import shows_processes
from shoal.actors.engines.disks import mounts
from shoal.actors.engines.image_store import ImageConfig
from shoal.actors.engines.oci import runtimes
from shoal.actors.engines.oci.containers import Containers
from shoal.actors.engines.oci.failures import typed
from shoal.actors.engines.oci.layers import Changed
from shoal.actors.engines.oci.layers.drafts import remove_tree
from shoal.actors.engines.oci.records import ImageMount, Record
from shoal.actors.engines.oci.writable import Writable
from shoal.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    ImageNotFound,
    InvalidRequest,
    NotADirectory,
    PathNotFound,
    QuotaExceeded,
)

_NO_DIRECTORY: Final = (errno.ENOTDIR, errno.EEXIST, errno.ELOOP)


@dataclass(frozen=True, slots=True)
class ImageMounts:
    """Those of all containers of a machine."""

    containers: Containers

    def mount(self, key: str, reference: str, path: str) -> None:
        """Mounts an image into a container that runs. Idempotent; if it raises, nothing of it is left."""
        with self.containers.running(key) as (record, place):
            _check_runtime(record)
            image = self.containers.layers.find(reference)
            if image is None:
                raise ImageNotFound(f"image {reference} is not on this node; pull it first, or load it on the node")
            known = next((each for each in record.images if each.path == path), None)
            if known is not None and known.digest != image.digest:
                raise AlreadyExists(f"path: another image is mounted at {path:.200}; unmount that first", field="path")
            if known is not None and known.holder == record.first:
                return
            mount = known or self._note(record, image.digest, path)
            record = self._need(key)
            try:
                self.containers.layers.hold(mount.digest, mount.hold_of(key), durable=record.keep)
                self._attach(record, place, mount, again=known is not None)
            except BaseException:
                if known is None:
                    self._forget(record, place, mount)
                raise
            self._put(record, mount, replace(mount, holder=record.first))

    def unmount(self, key: str, path: str) -> None:
        """Takes one away, with what was written there. Idempotent."""
        with self.containers.running(key) as (record, place):
            mount = next((each for each in record.images if each.path == path), None)
            if mount is None:
                return
            with typed(f"unmount {path:.200} from container {key}"):
                mount_namespaces.apart(lambda: mount_namespaces.detach(record.first.pid, path))
                self._forget(record, place, mount)

    @contextmanager
    def directory(self, key: str, path: str) -> Iterator[Changed]:
        """A directory of a container that runs, as that sees it, without what is mounted below it. It is frozen
        within."""
        with self.containers.running(key) as (record, _), self.containers.frozen(record):
            _check_runtime(record)
            try:
                tree, real = mount_namespaces.apart(lambda: mount_namespaces.take(record.first.pid, path))
            except OSError as error:
                raise _no_directory(error, path) from None
            try:
                if not mounts.is_overlay(tree):
                    raise InvalidRequest(
                        f"path: {path:.200} is not on the sandbox's own disk, but in a volume or the like; take a "
                        "version of the volume, or copy what is there",
                        field="path",
                    )
                mounted = runtimes.mounted(self.containers.records.place(key))
                yield Changed(None, tree, tuple(_below(real, mounted)), ImageConfig())
            finally:
                os.close(tree)

    def _note(self, record: Record, digest: str, path: str) -> ImageMount:
        """The intent, on the container's record."""
        mount = ImageMount(path, digest, 1 + max((each.number for each in record.images), default=0))
        self.containers.records.put(record.but(images=(*record.images, mount)))
        return mount

    def _attach(self, record: Record, place: Writable, mount: ImageMount, *, again: bool) -> None:
        top = place.images / str(mount.number)
        pid = record.first.pid

        def body() -> None:
            lower = self.containers.layers.lower_dirs(mount.digest) or (_made(top / "none"),)
            upper, work = _upper(top, lower), _made(top / "work")
            tree = mounts.overlay_nowhere(lower, upper, work)
            try:
                mount_namespaces.attach(pid, tree, mount.path, again=again)
            finally:
                os.close(tree)

        try:
            mount_namespaces.apart(body)
        except OSError as error:
            raise _not_mounted(error, mount.path) from error

    def _forget(self, record: Record, place: Writable, mount: ImageMount) -> None:
        with suppress(FileNotFoundError):
            remove_tree(place.images / str(mount.number))
        self.containers.layers.let_go(mount.hold_of(record.key))
        self._put(record, mount)

    def _put(self, record: Record, mount: ImageMount, *instead: ImageMount) -> None:
        others = (each for each in record.images if each.path != mount.path)
        self.containers.records.put(record.but(images=(*others, *instead)))

    def _need(self, key: str) -> Record:
        record = self.containers.records.get(key)
        assert record is not None  # nobody removes it meanwhile
        return record


def _check_runtime(record: Record) -> None:
    if not shows_processes(record.runtime):
        raise FailedPrecondition(
            f"images are mounted into, and directories taken of, sandboxes that runc runs, and this one runs by "
            f'{record.runtime}; create it with runtime="runc", or take an image of its whole filesystem',
            state="no_mounts",
        )


def _upper(top: Path, lower: Sequence[Path]) -> Path:
    """Where is written. The mount's own directory has owner, mode and times of the image's."""
    upper = top / "upper"
    if not upper.exists():
        unfinished = _made(top / "unfinished")
        status = lower[0].stat()
        os.chown(unfinished, status.st_uid, status.st_gid)
        shutil.copystat(lower[0], unfinished)
        unfinished.rename(upper)
    return upper


def _made(directory: Path) -> Path:
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    return directory


def _below(real: str, mounted: Sequence[str]) -> Iterator[str]:
    """Those names, from the root, that are below a path, from there."""
    top = real.strip("/")
    for name in mounted:
        if not top:
            yield name
        elif name.startswith(f"{top}/"):
            yield name.removeprefix(f"{top}/")


def _no_directory(error: OSError, path: str) -> Exception:
    if error.errno == errno.ENOENT:
        return PathNotFound(f"path: there is no {path:.200} in the sandbox", field="path")
    if error.errno in _NO_DIRECTORY:
        return NotADirectory(f"path: {path:.200} is no directory; name one", field="path")
    return FailedPrecondition(f"path: {path:.200} cannot be read: {error.strerror}", state="mount", field="path")


def _not_mounted(error: OSError, path: str) -> Exception:
    if error.errno in _NO_DIRECTORY:
        return InvalidRequest(f"path: {path:.200}, or a part of it, is no directory; choose another", field="path")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return QuotaExceeded("the sandbox's disk is full; remove what it does not need, or create it with more disk")
    if error.errno == errno.ENAMETOOLONG:
        return FailedPrecondition(
            "image: it has more layers than the node's kernel mounts at once; upgrade that to Linux 6.8, or build the "
            "image with fewer steps",
            state="layers",
            field="image",
        )
    if error.errno == errno.ENOSYS:
        return FailedPrecondition("the node's kernel is too old to mount images; it must be Linux 5.6", state="kernel")
    return FailedPrecondition(f"path: {path:.200} cannot be mounted: {error.strerror}", state="mount", field="path")
