"""The daemon's containers, by key. Blocks: called in the engine's threads, several at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from docker import APIClient
from docker.errors import APIError

from shoal.actors.engines.cgroup_parent import CgroupParent
from shoal.actors.engines.cgroups import Cgroup, cgroup_of
from shoal.actors.engines.contract import Container, ContainerSpec, ContainerState, Usage
from shoal.actors.engines.disks import Disk, Disks, disks
from shoal.actors.engines.docker import disk as own_disk
from shoal.actors.engines.docker.failures import docker_errors
from shoal.actors.engines.docker.images import Images
from shoal.actors.engines.docker.removal import remove_container, stop_container
from shoal.actors.engines.docker.request import KEY_LABEL, container_name, create_request
from shoal.actors.engines.isolation import check
from shoal.actors.engines.shared_counts import bound_terminals, queue_limits
from shoal.actors.engines.tree_size import tree_size
from shoal.model.errors import FailedPrecondition, ImageNotFound, Internal, NotFound, ShoalError

_log = logging.getLogger(__name__)

_IPV6 = Path("/proc/sys/net/ipv6")
_STATES = {"running": ContainerState.RUNNING, "paused": ContainerState.PAUSED}


@dataclass(slots=True)
class _Known:
    """What never changes about a running container: read once."""

    id: str
    container: Container
    trees: tuple[Path, ...]
    cgroup: Cgroup | None


class Containers:
    """`disks`: None if containers can't have disks of their own here; `cgroup_parent`: None if they can't be bounded
    together."""

    def __init__(
        self,
        client: APIClient,
        images: Images,
        *,
        runtimes: tuple[str, ...],
        seccomp: str,
        disks: Disks | None = None,
        cgroup_parent: CgroupParent | None = None,
    ) -> None:
        self._client = client
        self._images = images
        self._runtimes = runtimes
        self._seccomp = seccomp
        self._queue_limits = [{"Name": name, "Soft": most, "Hard": most} for name, most in queue_limits().items()]
        self._disks = disks
        self._cgroup_parent = cgroup_parent
        self._known: dict[str, _Known] = {}
        self._starting: set[str] = set()
        # Keys of containers in which a process was killed for memory. Some versions of the daemon tell it only
        # once, as an event.
        self._out_of_memory: set[str] = set()

    def start(self, spec: ContainerSpec, abandoned: threading.Event) -> Container:
        """Starts a container, all or nothing. `abandoned`: the caller has gone, so undo."""
        check(spec, runtimes=self._runtimes)
        if spec.key in self._starting:
            raise FailedPrecondition(f"container {spec.key} is being started already", state="starting")
        self._starting.add(spec.key)
        try:
            disk: Disk | None = None
            if self._disks is not None and spec.disk and spec.disk_dir is not None:
                disk, spec = own_disk.make(self._disks, spec)
            try:
                self._create(spec)
            except BaseException:
                if disk is not None and self._disks is not None:
                    own_disk.discard(self._disks, disk)
                raise
            try:
                if disk is not None:
                    own_disk.adopt(disk, spec.key, self._inspect(spec.key))
                return self._run(spec, abandoned)
            except BaseException:
                self._undo(spec.key)
                raise
        finally:
            self._starting.discard(spec.key)

    def _create(self, spec: ContainerSpec) -> None:
        name = container_name(spec.key)
        for fresh in (False, True):
            image = self._images.need(spec.image)
            request = create_request(spec, image, seccomp=self._seccomp, has_ipv6=_IPV6.exists())
            request["HostConfig"]["Ulimits"] = self._queue_limits
            if self._cgroup_parent is not None:
                self._cgroup_parent.ensure()
                request["HostConfig"]["CgroupParent"] = self._cgroup_parent.name
            try:
                with docker_errors(f"create container {spec.key}"):
                    self._client.create_container_from_config(request, name)
                return
            except ImageNotFound:
                # The remembered image may have been removed or replaced.
                self._images.forget(spec.image)
                if fresh:
                    raise
            except FailedPrecondition:
                # The name is taken by another container, which must not be undone.
                raise
            except ShoalError:
                # Refused, or no answer: it may exist all the same.
                self._undo(spec.key)
                raise

    def _run(self, spec: ContainerSpec, abandoned: threading.Event) -> Container:
        if abandoned.is_set():
            raise FailedPrecondition(f"the start of container {spec.key} was given up", state="starting")
        with docker_errors(f"start container {spec.key}"):
            self._client.start(container_name(spec.key))
        return self._started(spec.key)

    def _started(self, key: str) -> Container:
        found = self._inspect(key)
        container = to_container(found)
        if container.state is ContainerState.EXITED:
            raise Internal(
                f"container {key} ended as soon as it started, with exit code {container.exit_code}; "
                "check that the agent is a static executable for this machine"
            )
        _bound_terminals(container)
        return self._remember(found, container)

    def stop(self, key: str) -> None:
        """Kills all its processes, and keeps what it wrote. Idempotent."""
        self._known.pop(key, None)
        with docker_errors(f"stop container {key}"):
            stop_container(self._client, container_name(key), key)

    def restart(self, key: str, abandoned: threading.Event) -> Container:
        """Starts one that has exited; one that runs is left as it is. `abandoned`: the caller has gone, so undo."""
        if key in self._starting:
            raise FailedPrecondition(f"container {key} is being started already", state="starting")
        self._starting.add(key)
        try:
            found = self._inspect(key)
            container = to_container(found)
            if container.state is not ContainerState.EXITED:
                return self._remember(found, container)
            self._out_of_memory.discard(key)
            try:
                self._run_again(key, found, abandoned)
                return self._started(key)
            except BaseException:
                self._stop_again(key)
                raise
        finally:
            self._starting.discard(key)

    def _run_again(self, key: str, found: dict[str, Any], abandoned: threading.Event) -> None:
        if self._cgroup_parent is not None:
            self._cgroup_parent.ensure()
        if self._disks is not None:
            own_disk.open_again(self._disks, key, found)
        elif own_disk.point_of(found) is not None:
            raise FailedPrecondition(
                f"container {key} has a disk of its own, which this machine cannot mount any more; run `shoal doctor`",
                state=str(ContainerState.EXITED),
            )
        if abandoned.is_set():
            raise FailedPrecondition(f"the start of container {key} was given up", state="starting")
        with docker_errors(f"start container {key}"):
            self._client.start(container_name(key))

    def _stop_again(self, key: str) -> None:
        try:
            self.stop(key)
        except ShoalError:  # the first error says more
            _log.warning("could not undo the start of container %s", key, exc_info=True)

    def _undo(self, key: str) -> None:
        try:
            self.remove(key)
        except ShoalError:
            # The first error says more. The node's sweep finds what is left by its labels.
            _log.warning("could not undo the start of container %s", key, exc_info=True)

    def remove(self, key: str) -> None:
        self._known.pop(key, None)
        self._out_of_memory.discard(key)
        with docker_errors(f"remove container {key}"):
            remove_container(self._client, container_name(key), key)
        if self._disks is not None:
            self._disks.forget(key)

    def get(self, key: str) -> Container:
        found = self._inspect(key)
        container = to_container(found)
        if found["State"]["Status"] == "created" and key in self._starting:
            raise NotFound(f"container {key} is still being started")
        return self._remember(found, container)

    def list(self, labels: Mapping[str, str]) -> list[Container]:
        wanted = [KEY_LABEL, *(f"{name}={value}" for name, value in labels.items())]
        with docker_errors("list containers"):
            summaries = self._client.containers(all=True, filters={"label": wanted})
        return [container for summary in summaries if (container := self._of_summary(summary)) is not None]

    def _of_summary(self, summary: dict[str, Any]) -> Container | None:
        key, state = summary["Labels"][KEY_LABEL], _STATES.get(summary["State"])
        if key in self._starting:
            return None
        known = self._known.get(key)
        # A running container has not changed since it was read: saves a question each.
        if known is not None and known.id == summary["Id"] and known.container.state is state:
            return known.container
        try:
            return self.get(key)
        except NotFound:
            return None

    def usage(self, key: str) -> Usage:
        known = self._running(key)
        if known.cgroup is not None:
            try:
                return known.cgroup.usage()
            except (OSError, ValueError, KeyError):
                # It has just ended, or these files belong to another process: ask the daemon.
                self._known.pop(key, None)
                self._running(key)
        with docker_errors(f"read the usage of container {key}"):
            stats = self._client.stats(container_name(key), stream=False, one_shot=True)
        memory, cpu = stats.get("memory_stats") or {}, (stats.get("cpu_stats") or {}).get("cpu_usage") or {}
        detail = memory.get("stats") or {}
        droppable = detail.get("total_inactive_file", detail.get("inactive_file", 0))
        return Usage(
            cpu_s=cpu.get("total_usage", 0) / 1e9,
            memory=max(0, memory.get("usage", 0) - droppable),
            pids=(stats.get("pids_stats") or {}).get("current", 0),
        )

    def usages(self, keys: Collection[str]) -> dict[str, Usage]:
        """Of those whose figures can be read without the daemon."""
        found: dict[str, Usage] = {}
        for key in keys:
            known = self._known.get(key)
            if known is not None and known.cgroup is not None:
                try:
                    found[key] = known.cgroup.usage()
                except (OSError, ValueError, KeyError):
                    continue  # it has just ended
        return found

    def disk_usage(self, key: str, *, limit: int) -> int:
        disk = disks.find(key)
        if disk is not None:
            return disk.used()
        known = self._known.get(key)
        trees = known.trees if known is not None else own_disk.written(self._inspect(key))
        try:
            total = 0
            for tree in trees:
                total += tree_size(tree, limit=limit - total)
                if total > limit:
                    break
        except OSError:
            # Gone, or not readable from here: `_inspect` tells which.
            trees = ()
            self._known.pop(key, None)
            self._inspect(key)
        if trees:
            return total
        with docker_errors(f"measure the disk of container {key}"):
            sizes = self._client.containers(all=True, size=True, filters={"label": [f"{KEY_LABEL}={key}"]})
        if not sizes:
            raise _missing(key)
        return int(sizes[0].get("SizeRw") or 0)

    def pause(self, key: str) -> None:
        self._switch(key, "pause", ContainerState.PAUSED)

    def resume(self, key: str) -> None:
        self._switch(key, "unpause", ContainerState.RUNNING)

    def _switch(self, key: str, verb: str, wanted: ContainerState) -> None:
        try:
            with docker_errors(f"{verb} container {key}"):
                getattr(self._client, verb)(container_name(key))
        except (FailedPrecondition, Internal) as error:
            # Docker answers "conflict" or, in some versions, "server error" if it is already so.
            state = to_container(self._inspect(key)).state
            if state is wanted:
                return
            raise FailedPrecondition(f"could not {verb} container {key}: it is {state}", state=str(state)) from error
        finally:
            self._known.pop(key, None)

    def _running(self, key: str) -> _Known:
        known = self._known.get(key)
        if known is None:
            container = self.get(key)
            if container.state is ContainerState.EXITED:
                raise FailedPrecondition(f"container {key} has exited", state=str(container.state))
            known = self._known[key]
        return known

    def note_out_of_memory(self, key: str) -> None:
        """Notes the daemon's event that the kernel killed a process in the container for memory."""
        self._out_of_memory.add(key)
        self._known.pop(key, None)

    def _remember(self, found: dict[str, Any], container: Container) -> Container:
        """Stores what saves questions later; returns the container with what is known beyond the daemon's answer."""
        cgroup = cgroup_of(container.pid, name=found["Id"]) if container.pid else None
        if cgroup is not None and _killed_for_memory(cgroup):
            self._out_of_memory.add(container.key)
        if container.key in self._out_of_memory:
            container = replace(container, out_of_memory=True)
        if container.state is ContainerState.EXITED:
            self._known.pop(container.key, None)
        else:
            self._known[container.key] = _Known(found["Id"], container, own_disk.written(found), cgroup)
        return container

    def _inspect(self, key: str) -> dict[str, Any]:
        with docker_errors(f"look at container {key}"):
            try:
                found: dict[str, Any] = self._client.inspect_container(container_name(key))
                return found
            except APIError as error:
                if error.status_code == 404:
                    raise _missing(key) from error
                raise


def to_container(found: dict[str, Any]) -> Container:
    """The daemon's description as a `Container`. One that was created but never ran counts as exited, without a
    code."""
    said, labels = found["State"], dict(found["Config"].get("Labels") or {})
    state = _STATES.get(said["Status"], ContainerState.EXITED)
    ended = state is ContainerState.EXITED
    ran = said["Status"] != "created"
    return Container(
        key=labels.get(KEY_LABEL) or found["Name"].removeprefix("/shoal-"),
        state=state,
        pid=0 if ended else int(said.get("Pid") or 0),
        exit_code=int(said.get("ExitCode") or 0) if ended and ran else None,
        out_of_memory=bool(said.get("OOMKilled")),
        created_at=_seconds(found.get("Created", "")),
        labels=labels,
    )


def _bound_terminals(container: Container) -> None:
    try:
        bound_terminals(container.pid)
    except OSError as error:
        # gVisor has terminals of its own; on a kernel before 5.2 all containers share the machine's number.
        _log.debug("the terminals of container %s are not bounded: %s", container.key, error)


def _seconds(timestamp: str) -> float:
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except ValueError:
        return 0.0


def _killed_for_memory(cgroup: Cgroup) -> bool:
    try:
        return cgroup.out_of_memory()
    except (OSError, ValueError):
        # It has just ended: the daemon's answer must do.
        return False


def _missing(key: str) -> NotFound:
    return NotFound(f"there is no container {key} on this node")
