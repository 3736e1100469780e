"""The pure parts of the Docker engine: what is asked of the daemon, and what its answers mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest
import requests
from docker import APIClient
from docker.errors import APIError, DockerException

from shoal.actors.engines import cgroups
from shoal.actors.engines.catalogue import ENGINES, engine_named
from shoal.actors.engines.contract import ContainerSpec, ContainerState, EngineEvent, EventKind, Mount
from shoal.actors.engines.docker.containers import to_container
from shoal.actors.engines.docker.disk import point_of
from shoal.actors.engines.docker.events import to_event
from shoal.actors.engines.docker.failures import MESSAGE_LIMIT, docker_errors, from_pull
from shoal.actors.engines.docker.removal import remove_container
from shoal.actors.engines.docker.request import create_request, is_kept
from shoal.actors.engines.image_store import ImageConfig, ImageInfo
from shoal.model.errors import (
    FailedPrecondition,
    ImageNotFound,
    Internal,
    InvalidRequest,
    NotFound,
    ShoalError,
    Unavailable,
)
from shoal.model.settings import Settings

MiB = 1 << 20


def spec(**overrides: Any) -> ContainerSpec:
    plain: dict[str, Any] = {
        "key": "c-one",
        "image": "shoal/base",
        "agent": Path("/opt/agent"),
        "run_dir": Path("/run/c-one"),
        "cpu": 0.5,
        "memory": 512 * MiB,
        "pids": 64,
    }
    return ContainerSpec(**{**plain, **overrides})


IMAGE = ImageInfo("shoal/base", "sha256:abc", config=ImageConfig(user="alice", workdir="/home/alice"))


def requested(asked: ContainerSpec) -> dict[str, Any]:
    return create_request(asked, IMAGE, seccomp='{"mine":1}')


def test_a_request_closes_what_can_be_closed() -> None:
    asked = requested(spec(labels={"a": "b"}, env={"X": "1", "SHOAL_USER": "forged"}))
    assert asked["Image"] == "sha256:abc"
    assert asked["User"] == "0:0"
    assert asked["Labels"] == {"a": "b", "shoal.key": "c-one", "shoal.keep": "", "shoal.disk": ""}
    assert set(asked["Env"]) == {"X=1", "SHOAL_USER=alice", "SHOAL_WORKDIR=/home/alice"}
    isolation = asked["HostConfig"]
    assert isolation["CapDrop"] == ["ALL"]
    assert not {"NET_RAW", "SYS_ADMIN", "MKNOD", "NET_ADMIN", "SYS_CHROOT", "SETPCAP"} & set(isolation["CapAdd"])
    assert isolation["SecurityOpt"] == ["no-new-privileges", 'seccomp={"mine":1}']
    assert isolation["NetworkMode"] == "none"
    assert (isolation["NanoCpus"], isolation["Memory"], isolation["MemorySwap"]) == (5 * 10**8, 512 * MiB, 512 * MiB)
    assert isolation["PidsLimit"] == 64
    assert "DeviceRequests" not in isolation
    assert all(mount["ReadOnly"] for mount in isolation["Mounts"])


def test_no_label_of_an_image_keeps_a_container_or_names_its_disk() -> None:
    """The daemon gives a container all labels of its image that the request does not have."""
    hostile = {"shoal.key": "c-other", "shoal.keep": "yes", "shoal.disk": "/etc", "theirs": "stays"}
    merged = {**hostile, **requested(spec())["Labels"]}
    assert (merged["shoal.key"], merged["theirs"]) == ("c-one", "stays")
    assert not is_kept(merged)
    assert point_of({"Config": {"Labels": merged}}) is None
    kept = {**hostile, **requested(spec(keep=True, labels={"shoal.disk": "/disks/one"}))["Labels"]}
    assert is_kept(kept)
    assert point_of({"Config": {"Labels": kept}}) == Path("/disks/one")
    without = {**hostile, **requested(spec(keep=True))["Labels"]}
    assert point_of({"Config": {"Labels": without}}) is None


def test_defaults_give_way_to_the_image_and_to_the_node() -> None:
    image = ImageInfo("shoal/base", "sha256:abc", config=ImageConfig(env={"A": "image"}))
    asked = spec(default_env={"A": "default", "B": "default", "C": "default"}, env={"B": "node"})
    request = create_request(asked, image, seccomp="{}")
    assert set(request["Env"]) == {"B=node", "C=default", "SHOAL_USER=", "SHOAL_WORKDIR=/"}


def test_limits_that_are_asked_for() -> None:
    asked = requested(spec(memory=0, gpu=2, runtime="runsc"))["HostConfig"]
    assert "Memory" not in asked
    assert asked["DeviceRequests"][0]["Count"] == 2
    assert asked["Runtime"] == "runsc"


def test_mounts_are_as_told() -> None:
    mounts = (Mount(Path("/a:b"), "/etc/resolv.conf"), Mount(Path("/data"), "/data", read_only=False))
    asked = requested(spec(mounts=mounts))["HostConfig"]["Mounts"]
    assert [(m["Source"], m["Target"], m["ReadOnly"]) for m in asked] == [
        ("/opt/agent", "/.shoal/agent", True),
        ("/run/c-one", "/.shoal/run", True),
        ("/a:b", "/etc/resolv.conf", True),
        ("/data", "/data", False),
    ]


def answered(status: int, message: str) -> APIError:
    response = requests.Response()
    response.status_code = status
    return APIError("refused", response=response, explanation=message)


@pytest.mark.parametrize(
    ("status", "message", "kind", "field"),
    [
        (400, "Minimum memory limit allowed is 6MB", InvalidRequest, "memory"),
        (400, "invalid reference format", InvalidRequest, "image"),
        (400, "Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available", InvalidRequest, "cpu"),
        (500, 'could not select device driver "" with capabilities: [[gpu]]', InvalidRequest, "gpu"),
        (400, "unknown or invalid runtime name: runsc", Internal, None),
        (400, "Unknown runtime specified runsc", InvalidRequest, "runtime"),
        (500, "--storage-opt is supported only for overlay over xfs", InvalidRequest, "disk"),
        (404, "No such image: x", ImageNotFound, None),
        (404, "No such container: x", NotFound, None),
        (409, "is not running", FailedPrecondition, None),
        (503, "loading", Unavailable, None),
        (500, "failed to create shim task: something with cpuset", Internal, None),
        (500, "x" * 100_000, Internal, None),
    ],
)
def test_each_answer_has_its_error(status: int, message: str, kind: type[ShoalError], field: str | None) -> None:
    with pytest.raises(ShoalError) as caught, docker_errors("start container c-one"):
        raise answered(status, message)
    assert type(caught.value) is kind
    assert caught.value.fields.get("field") == field
    assert "start container c-one" in caught.value.message
    assert len(caught.value.message) < MESSAGE_LIMIT + 200


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (PermissionError(13, "denied"), "may not open"),
        (FileNotFoundError(2, "gone"), "socket is not there"),
        (requests.exceptions.ConnectionError("aborted", ConnectionRefusedError(111, "refused")), "nothing listens"),
        (requests.exceptions.ReadTimeout("slow"), "too long"),
        (DockerException("odd"), "odd"),
    ],
)
def test_no_answer_is_unavailable_and_names_the_remedy(error: Exception, why: str) -> None:
    with pytest.raises(Unavailable, match="shoal doctor") as caught, docker_errors("list containers"):
        raise error
    assert why in caught.value.message


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Get https://r/v2/: dial tcp 10.0.0.1:443: i/o timeout", Unavailable),
        ("Get https://r/v2/: dial tcp 127.0.0.1:5: connect: connection refused", Unavailable),
        ("Get https://r/v2/: read tcp 127.0.0.1:6->127.0.0.1:5: read: connection reset by peer", Unavailable),
        ("Get https://r/v2/: dial tcp: lookup r on 10.0.0.53:53: no such host", ImageNotFound),
        ("pull access denied for x, repository does not exist or may require 'docker login'", ImageNotFound),
        ("manifest for x:y not found: manifest unknown: manifest unknown", ImageNotFound),
        ("invalid reference format", InvalidRequest),
        ("write /var: no space left on device", FailedPrecondition),
        ("something else", Internal),
    ],
)
def test_why_a_pull_failed(said: str, kind: type[ShoalError]) -> None:
    error = from_pull(said, "r/x")
    assert type(error) is kind
    assert "r/x" in error.message


def test_events_are_read() -> None:
    def message(action: str, **attributes: str) -> dict[str, Any]:
        return {"Action": action, "Actor": {"Attributes": attributes}}

    key = {"shoal.key": "c-one"}
    assert to_event(message("die", exitCode="7", **key)) == EngineEvent(EventKind.EXITED, "c-one", 7)
    assert to_event(message("oom", **key)) == EngineEvent(EventKind.OUT_OF_MEMORY, "c-one")
    assert to_event(message("die", exitCode="odd", **key)) == EngineEvent(EventKind.EXITED, "c-one", None)
    assert to_event(message("start", **key)) is None
    assert to_event(message("die", exitCode="7")) is None
    assert to_event({}) is None


def test_one_that_never_ran_counts_as_exited_without_a_code() -> None:
    found = {
        "Name": "/shoal-c-one",
        "Created": "2026-01-02T03:04:05.678901234Z",
        "Config": {"Labels": None},
        "State": {"Status": "created", "Pid": 0, "ExitCode": 0, "OOMKilled": False},
    }
    container = to_container(found)
    assert (container.key, container.state, container.exit_code) == ("c-one", ContainerState.EXITED, None)
    assert container.created_at == pytest.approx(1767323045.678901)


def test_control_groups_are_found() -> None:
    first = "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n2:pids:/docker/abc\n0::/\n"
    mounts = "".join(
        f"3{n} 2 0:3{n} / /sys/fs/cgroup/{names} rw - cgroup cgroup rw,{names}\n"
        for n, names in enumerate(("memory", "cpu,cpuacct", "pids"))
    )
    found = cgroups.find(first, mounts)
    assert found is not None
    assert not found.unified
    assert found.cpu == Path("/sys/fs/cgroup/cpu,cpuacct/docker/abc")
    second = cgroups.find("0::/system.slice/docker-abc.scope\n", "35 2 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    assert second is not None
    assert second.unified
    assert second.memory == Path("/sys/fs/cgroup/system.slice/docker-abc.scope")
    assert cgroups.find("", mounts) is None
    # Seen from another container: its own part only is mounted, and this is not in it.
    assert cgroups.find("0::/docker/abc\n", "35 2 0:30 /docker/other /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n") is None


def test_usage_is_read_from_the_kernels_files(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 400000\n")
    (tmp_path / "memory.events").write_text("low 0\noom 3\noom_kill 1\n")
    (tmp_path / "pids.current").write_text("4\n")
    group = cgroups.Cgroup(tmp_path, tmp_path, tmp_path, unified=True)
    usage = group.usage()
    assert (usage.cpu_s, usage.memory, usage.pids) == (2.5, 600_000, 4)
    assert group.out_of_memory()


def test_a_pid_of_another_never_answers_for_the_container() -> None:
    assert cgroups.cgroup_of(1, name="no-such-container") is None


def test_engines_are_named_in_one_list() -> None:
    for name in ENGINES:
        assert engine_named(name, Settings()).name == name
    with pytest.raises(InvalidRequest) as caught:
        engine_named("podman", Settings())
    assert caught.value.field == "engine"


class Daemon:
    """Removes a container only if its layer is empty, as one that runs out of descriptors in a deep tree."""

    def __init__(self, layer: Path) -> None:
        self.layer, self.running, self.removed = layer, True, False

    def remove_container(self, name: str, **_: Any) -> None:
        if os.listdir(self.layer):
            raise answered(500, "failed to remove root filesystem: too many open files")
        self.removed = True

    def inspect_container(self, name: str) -> dict[str, Any]:
        return {"State": {"Running": self.running}, "GraphDriver": {"Data": {"UpperDir": str(self.layer)}}}

    def kill(self, name: str) -> None:
        self.running = False


def test_what_the_daemon_does_not_remove_is_emptied_first(tmp_path: Path) -> None:
    (tmp_path / "deep" / "tree").mkdir(parents=True)
    daemon = Daemon(tmp_path)
    remove_container(cast(APIClient, daemon), "shoal-c-one", None)
    assert daemon.removed
    assert not daemon.running
