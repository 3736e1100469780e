"""The containers of a machine, by key. Blocks: called in the engine's threads, several at once.

A start's steps, in order: the record, the hold on the layers, the disk, the mounted root filesystem, the runtime, the
record again. Whatever was done, `remove` undoes it by the record alone; `sweep` does that after a crash.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shoal.actors.engines.cgroup_parent import CgroupParent
from shoal.actors.engines.contract import Container, ContainerSpec, ContainerState, Usage, shows_processes
from shoal.actors.engines.disks import Disks, disks
from shoal.actors.engines.disks.failures import disk_errors
from shoal.actors.engines.image_store import ImageConfig, ImageInfo
from shoal.actors.engines.isolation import LEAST_MEMORY, MiB, check, check_key
from shoal.actors.engines.oci import bundle, filters, own_memory, processes, runtimes, writable
from shoal.actors.engines.oci.failures import typed
from shoal.actors.engines.oci.filters import Filters
from shoal.actors.engines.oci.groups import Groups, Until
from shoal.actors.engines.oci.key_locks import KeyLocks
from shoal.actors.engines.oci.memory import Memories, with_memory
from shoal.actors.engines.oci.protocols import Layers, Watching
from shoal.actors.engines.oci.records import ProcessRef, Record, Records, Stage
from shoal.actors.engines.oci.runtimes import Runtime
from shoal.actors.engines.oci.sealed import SealedPrograms
from shoal.actors.engines.oci.writable import Writable, Written
from shoal.model.errors import (
    FailedPrecondition,
    ImageNotFound,
    Internal,
    InvalidRequest,
    NotFound,
    ShoalError,
)

_log = logging.getLogger(__name__)

NOT_RESUMED = "not_resumed"
"""The state of a container that was suspended, and does not go on from its memory."""


@dataclass(slots=True)
class Containers:
    """`state`: where runtimes keep theirs; `mount_points`, `kept_tmp`: the directories of
    `make_mount_points` and `make_kept_tmp`; `own_disks`: None if
    containers can't have disks of their own here; `parent`: None if they can't be bounded together."""

    records: Records
    layers: Layers
    groups: Groups
    watch: Watching
    machine: bundle.Machine
    filters: Filters
    sealed: SealedPrograms
    known_runtimes: Mapping[str, Runtime]
    state: Path
    mount_points: Path
    kept_tmp: Path
    memories: Memories
    own_disks: Disks | None = None
    parent: CgroupParent | None = None
    maker: ProcessRef = field(default_factory=lambda: processes.ref(os.getpid()))
    codes: dict[str, int | None] = field(default_factory=dict)
    """Exit codes of those that have ended while they were watched."""
    out_of_memory: set[str] = field(default_factory=set)
    _starting: set[str] = field(default_factory=set)
    _lock: KeyLocks = field(default_factory=KeyLocks)

    def start(self, spec: ContainerSpec, abandoned: threading.Event) -> Container:
        """Starts a container, all or nothing. `abandoned`: the caller has gone, so undo."""
        self._check(spec)
        image = self.layers.find(spec.image)
        if image is None:
            raise ImageNotFound(f"image {spec.image} is not on this node; pull it first, or load it on the node")
        with self._busy(spec.key):
            if self.records.get(spec.key) is not None:
                raise FailedPrecondition(f"there is a container {spec.key} already", state="running")
            try:
                with typed(f"start container {spec.key}"):
                    return self._make(spec, image, abandoned)
            except BaseException:
                self._undo(spec.key, self._remove)
                raise

    def _make(self, spec: ContainerSpec, image: ImageInfo, abandoned: threading.Event) -> Container:
        record = Record(
            spec.key,
            image.digest,
            spec.runtime,
            time.time(),
            labels=dict(spec.labels),
            keep=spec.keep,
            maker=self.maker,
            disk=writable.place_of(spec, self.own_disks),
        )
        self.records.put(record)
        self.layers.hold(record.digest, record.key, durable=record.keep)
        if record.disk is not None and self.own_disks is not None:
            writable.make_disk(self.own_disks, spec)
        place = self._writable(record)
        own = place.prepare(spec)
        known = self.filters.find(self._runtime(record))
        config = bundle.config(
            replace(spec, mounts=(*own, *spec.mounts)),
            image,
            bundle.ContainerPaths(
                place.root, self.groups.path(spec.key), None if known is None else place.copy_filter(known)
            ),
            self.machine,
        )
        runtimes.write_config(self.records.place(spec.key), config)
        memory = None if shows_processes(spec.runtime) else self.memories.find(image)
        return self._run(record, abandoned, memory)

    def _run(self, record: Record, abandoned: threading.Event, memory: Path | None = None) -> Container:
        place = self._writable(record)
        with disk_errors(record.key):
            place.mount((*self._mount_points(record), *self.layers.lower_dirs(record.digest)))
        if abandoned.is_set():
            raise FailedPrecondition(f"the start of container {record.key} was given up", state="starting")
        if self.parent is not None:
            self.parent.ensure()
        bundle_dir = self.records.place(record.key)
        lazy = memory is not None and memory.parent != bundle_dir  # its own is let go once it runs
        pid = runtimes.run(self._runtime(record), self.state, record.key, bundle_dir, self.sealed, memory, lazy=lazy)
        record = record.but(stage=Stage.MADE, first=processes.ref(pid), maker=self.maker)
        self.records.put(record)
        place.unmount()
        if not processes.alive(record.first):
            raise Internal(
                f"container {record.key} ended as soon as it started; "
                "check that the agent is a static executable for this machine"
            )
        if shows_processes(record.runtime):
            filters.wait_applied(pid)
            self.filters.learn(self._runtime(record), pid)
        self.watch.add(record.key, record.first)
        return replace(self._container(record), resumed=memory is not None)

    def stop(self, key: str) -> None:
        """Kills all its processes, and keeps what it wrote. Idempotent."""
        with self._lock(key):
            self._stop(key)

    def _stop(self, key: str) -> None:
        record = self._need(key)
        self._end(record)
        self._still_mark(key).unlink(missing_ok=True)
        self.records.put(record.but(first=ProcessRef()))
        top = self._writable(record).top
        writable.put_away(key, top, is_disk=record.disk is not None)

    def restart(self, key: str, abandoned: threading.Event) -> Container:
        """Starts one that has exited; one that runs is left as it is. `abandoned`: the caller has gone, so undo."""
        with self._busy(key):
            record = self._need(key)
            if processes.alive(record.first):
                return self._container(record)
            try:
                self._end(record)  # what its last run left
                self.codes.pop(key, None)
                self.out_of_memory.discard(key)
                if record.disk is not None:
                    writable.open_disk(self.own_disks, key, record.disk)
                with typed(f"start container {key}"):
                    return self._run(record, abandoned, own_memory.find(self.records.place(key)))
            except BaseException as error:
                self._undo(key, self._stop)
                if isinstance(error, Internal) and own_memory.find(self.records.place(key)) is not None:
                    message = f"it cannot go on from its memory: {error.message}"
                    raise FailedPrecondition(message, state=NOT_RESUMED) from None
                raise

    def kill(self, key: str, *, files_closed: bool = True) -> None:
        """Kills all its processes, for good: it is about to go. `files_closed`: see the contract. Idempotent."""
        with self._lock(key):
            record = self._need(key)
            self.watch.forget(key)
            with typed(f"kill container {key}"):
                self.groups.kill(key, record.first, Until.ENDED if files_closed else Until.ENDING)

    def remove(self, key: str) -> None:
        """Kills and removes it with all that it wrote. Idempotent."""
        check_key(key)
        with self._lock(key):
            self._remove(key)

    def _remove(self, key: str) -> None:
        record = self.records.get(key)
        if record is None:
            return
        if record.keep and record.stage is not Stage.REMOVING:
            self.records.put(record.but(stage=Stage.REMOVING))  # half of it must never be started again
        self._end(record)
        if record.disk is not None:
            disk = disks.find(key)
            if disk is not None:
                disks.remove(disk)
            if self.own_disks is not None:
                self.own_disks.forget(key)
        else:
            self._writable(record).empty()
        self.layers.let_go(key)
        for mounted in record.images:
            self.layers.let_go(mounted.hold_of(key))
        self.records.drop(key)
        self.codes.pop(key, None)
        self.out_of_memory.discard(key)

    def _end(self, record: Record) -> None:
        """Nothing of a container's processes is left afterwards, nor of what a runtime made for them."""
        key = record.key
        self.watch.forget(key)
        with typed(f"remove container {key}"):
            self.groups.kill(key, record.first)
            self.groups.remove(key)
            self._writable(record).unmount()
            runtimes.forget(self.state, key)

    def _undo(self, key: str, work: Any) -> None:
        try:
            work(key)
        except (ShoalError, OSError):  # the first error says more; what is left has a record
            _log.warning("could not undo the start of container %s", key, exc_info=True)

    def sweep(self) -> None:
        """Removes what a crash left half made or half removed. What somebody else is making stays."""
        for key in self.records.sweep():
            self.records.drop(key)
        for record in list(self.records.all()):
            if record.stage is Stage.MAKING and processes.alive(record.maker):
                continue
            if record.stage is Stage.MAKING:
                for runtime in self.known_runtimes.values():
                    processes.end_calls(os.path.basename(runtime.program), record.key)
            if record.stage is not Stage.MADE:
                self._undo(record.key, self.remove)

    def watch_all(self) -> None:
        """Watches those that run, after this process was started anew."""
        for record in self.records.all():
            if record.stage is Stage.MADE and record.first.pid and processes.alive(record.first):
                self.watch.add(record.key, record.first)
                own = own_memory.find(self.records.place(record.key))
                if own is not None and not processes.alive(record.maker):
                    self._undo(record.key, self.stop)  # it was being suspended, or had just gone on
                elif own is None and self._still_mark(record.key).exists():
                    self._undo(record.key, self.go_on)

    def get(self, key: str) -> Container:
        record = self._need(key)
        if key in self._starting and not record.first.pid:
            raise NotFound(f"container {key} is still being started")
        return self._container(record)

    def list(self, labels: Mapping[str, str]) -> list[Container]:
        return [
            self._container(record)
            for record in self.records.all()
            if labels.items() <= record.labels.items() and not (record.key in self._starting and not record.first.pid)
        ]

    def labels_of(self, key: str) -> Mapping[str, str]:
        record = self.records.get(key)
        return {} if record is None else record.labels

    def usage(self, key: str) -> Usage:
        record = self._running(key)
        try:
            return self.groups.of(record.key).usage()
        except (OSError, ValueError, KeyError) as error:
            self._running(key)  # it has just ended
            raise Internal(f"the usage of container {key} cannot be read: {error}") from error

    def usages(self, keys: Collection[str]) -> dict[str, Usage]:
        """Of those whose figures can be read."""
        found: dict[str, Usage] = {}
        for key in keys:
            try:
                found[key] = self.groups.of(key).usage()
            except (OSError, ValueError, KeyError):
                continue  # it has just gone
        return found

    def disk_usage(self, key: str, *, limit: int) -> int:
        record = self._need(key)
        disk = disks.find(key) if record.disk is not None else None
        if disk is not None:
            return disk.used()
        try:
            return self._writable(record).used(limit)
        except OSError as error:
            self._need(key)
            raise Internal(f"what container {key} wrote cannot be counted: {error}") from error

    def pause(self, key: str) -> None:
        with self._lock(key):
            self._running(key)
            with typed(f"pause container {key}"):
                self.groups.freeze(key)

    def resume(self, key: str) -> None:
        with self._lock(key):
            self._running(key)
            with typed(f"resume container {key}"):
                self.groups.thaw(key)

    def suspend(self, key: str) -> None:
        """Saves the memory of one that is kept; it stands still then. Idempotent."""
        with self._lock(key):
            record, place = self._need(key), self.records.place(key)
            if own_memory.find(place) is not None:
                return
            record = self._with_memory(key)
            self._still_mark(key).touch()
            try:
                with typed(f"save the memory of container {key}"):
                    runtimes.pause(self._runtime(record), self.state, key)
                    runtimes.save_memory(self._runtime(record), self.state, key, own_memory.begin(place))
                    own_memory.keep(place)
            except BaseException:
                own_memory.drop(place)
                self._go_on(key)
                raise

    def forget_memory(self, key: str) -> None:
        """Lets go of what `suspend` saved; if it stands still for that, it goes on. Idempotent."""
        with self._lock(key):
            self._need(key)
            own_memory.drop(self.records.place(key))
            if self._still_mark(key).exists():
                self._go_on(key)

    def still(self, key: str) -> ImageConfig:
        """Stops what runs in a container of which the memory can be taken; the defaults for an image with it.
        `FailedPrecondition` for a runtime that gives none."""
        with self._lock(key):
            record = self._with_memory(key)
            image = self.layers.find(record.digest)
            self._still_mark(key).touch()
            runtimes.pause(self._runtime(record), self.state, key)
            return with_memory(ImageConfig() if image is None else image.config)

    def save_memory(self, key: str, directory: Path) -> None:
        """Writes the memory of one that is `still`."""
        with self._lock(key):
            runtimes.save_memory(self._runtime(self._running(key)), self.state, key, directory)

    def go_on(self, key: str) -> None:
        """Lets one that is `still` go on, if it is there."""
        with self._lock(key):
            self._go_on(key)

    def _go_on(self, key: str) -> None:
        record = self.records.get(key)
        if record is not None and processes.alive(record.first):
            runtimes.resume(self._runtime(record), self.state, key)
        self._still_mark(key).unlink(missing_ok=True)

    def _with_memory(self, key: str) -> Record:
        """One that runs, of which memory can be taken."""
        record = self._running(key)
        if shows_processes(record.runtime):
            raise FailedPrecondition(
                f"memory can be taken of a sandbox in gVisor only, and this one runs by {record.runtime}; "
                'create it with runtime="runsc"',
                state="no_memory",
            )
        return record

    def _still_mark(self, key: str) -> Path:
        """There while one is `still`, for whoever comes after a crash."""
        return self.records.place(key) / "still"

    def sweep_memories(self) -> None:
        """Removes the memory of images that are gone."""
        self.memories.sweep()

    @contextmanager
    def running(self, key: str) -> Iterator[tuple[Record, Writable]]:
        """One that runs, and is neither stopped nor removed within. `FailedPrecondition` once it exited, `NotFound`."""
        with self._lock(key):
            record = self._running(key)
            yield record, self._writable(record)

    @contextmanager
    def written(self, key: str) -> Iterator[Written]:
        """What it has changed. It is frozen within, and may also have exited. `NotFound`."""
        with self._lock(key):
            record = self._need(key)
            stowed = record.disk is not None and disks.find(key) is None
            with self.frozen(record):
                try:
                    if stowed:
                        writable.open_disk(self.own_disks, key, record.disk or "")
                    mounted = runtimes.mounted(self.records.place(key))
                    yield Written(record.digest, self._writable(record).upper, mounted)
                finally:
                    if stowed:
                        writable.put_away(key, self._writable(record).top, is_disk=True)

    @contextmanager
    def frozen(self, record: Record) -> Iterator[None]:
        """Freezes what runs in it, unless it is paused."""
        freeze = processes.alive(record.first) and not self.groups.frozen(record.key)
        try:
            if freeze:
                with typed(f"freeze container {record.key}"):
                    self.groups.freeze(record.key)
            yield
        finally:
            if freeze and processes.alive(record.first):
                with typed(f"thaw container {record.key}"):
                    self.groups.thaw(record.key)

    def _container(self, record: Record) -> Container:
        running = processes.alive(record.first)
        state = ContainerState.RUNNING if running else ContainerState.EXITED
        if running and self.groups.frozen(record.key):
            state = ContainerState.PAUSED
        return Container(
            key=record.key,
            state=state,
            pid=record.first.pid if running else 0,
            exit_code=None if running else self._exit_code(record),
            out_of_memory=record.key in self.out_of_memory or self._killed_for_memory(record.key),
            created_at=record.created_at,
            labels=dict(record.labels),
        )

    def _exit_code(self, record: Record) -> int | None:
        code = self.codes.get(record.key)
        return processes.exit_code(record.first) if code is None and record.first.pid else code

    def _killed_for_memory(self, key: str) -> bool:
        try:
            return self.groups.of(key).out_of_memory()
        except (OSError, ValueError):
            return False

    def _running(self, key: str) -> Record:
        record = self._need(key)
        if not processes.alive(record.first):
            raise FailedPrecondition(f"container {key} has exited", state=str(ContainerState.EXITED))
        return record

    def _need(self, key: str) -> Record:
        check_key(key)
        record = self.records.get(key)
        if record is None or record.stage is Stage.REMOVING:
            raise NotFound(f"there is no container {key} on this node")
        return record

    def _writable(self, record: Record) -> Writable:
        place = self.records.place(record.key)
        return Writable(Path(record.disk) if record.disk is not None else place, place / "root")

    def _mount_points(self, record: Record) -> tuple[Path, ...]:
        return (self.mount_points,) if shows_processes(record.runtime) else (self.kept_tmp, self.mount_points)

    def _runtime(self, record: Record) -> Runtime:
        runtime = self.known_runtimes.get(record.runtime)
        if runtime is None:
            raise FailedPrecondition(f"{record.runtime} is not on this machine any more; run `shoal doctor`")
        return runtime

    def _check(self, spec: ContainerSpec) -> None:
        check(spec, runtimes=tuple(self.known_runtimes))
        if 0 < spec.memory < LEAST_MEMORY:
            raise InvalidRequest(f"memory: ask for at least {LEAST_MEMORY // MiB} MiB", field="memory")
        if spec.cpu > (cores := os.cpu_count() or 1):
            raise InvalidRequest(f"cpu: this node has {cores} cores; ask for at most as many", field="cpu")
        if spec.gpu:
            raise InvalidRequest(
                "gpu: the engine `oci` gives none; set engine = docker on nodes with GPUs", field="gpu"
            )

    @contextmanager
    def _busy(self, key: str) -> Iterator[None]:
        """A container is started by one at a time; a second one is refused."""
        if key in self._starting:
            raise FailedPrecondition(f"container {key} is being started already", state="starting")
        self._starting.add(key)
        try:
            with self._lock(key):
                yield
        finally:
            self._starting.discard(key)
