"""What a caller may say of mounts, and what the node decides about them."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from shoal.actors.engines import mount_namespaces
from shoal.actors.node.mounts.contract import Helper, MountKind
from shoal.actors.node.mounts.juicefs import environment
from shoal.actors.node.mounts.manager import LINGER_S, Mounts
from shoal.actors.node.mounts.mounted import Mounted, Served
from shoal.actors.node.mounts.service_watch import ServiceWatch
from shoal.actors.node.mounts.volumes import storage_answers
from shoal.actors.node.records import ContainerRecord, Stage
from shoal.actors.volumes import VolumeAccess
from shoal.cli.options import mounts
from shoal.client.volume.volume import MountedVolume, Volume
from shoal.model.errors import InvalidRequest
from shoal.model.mounts import MountSpec, check_mounts, in_order, mounts_of
from shoal.model.spec_model import check_spec
from shoal.model.volumes import VolumeInfo, check_limits
from tests.unit.builders import spec

if TYPE_CHECKING:
    from shoal.client.cluster import Client

VOLUME = Volume(cast("Client", SimpleNamespace(transport=None)), VolumeInfo("vol-1", "data", "main", 0.0))


@pytest.mark.parametrize(
    "path",
    [
        "",
        "data",
        "/",
        "//data",
        "/a/../b",
        "/a/./b",
        "/a/",
        "/proc",
        "/proc/x",
        "/sys/fs",
        "/dev/shm",
        "/.shoal/x",
        "/a\0",
    ],
)
def test_a_path_that_cannot_be(path: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_mounts("volumes", [MountSpec(path, volume="data")])
    assert refused.value.field == "volumes"


@pytest.mark.parametrize("sub_path", ["/etc", "../x", "a/../..", "..", ".", "a//b", "a/"])
def test_a_sub_path_that_cannot_be(sub_path: str) -> None:
    with pytest.raises(InvalidRequest):
        check_mounts("volumes", [MountSpec("/data", sub_path=sub_path, volume="data")])


def test_juicefs_has_the_credentials_of_the_settings_or_else_those_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/token")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the machine's")
    role = environment(VolumeAccess("", "", {"AWS_REGION": "eu-west-1"}))
    assert role["AWS_WEB_IDENTITY_TOKEN_FILE"] == "/token"
    assert role["AWS_REGION"] == "eu-west-1"
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    assert environment(VolumeAccess("", "", keys)) == keys


def test_two_at_one_path_and_none_by_gvisor() -> None:
    with pytest.raises(InvalidRequest):
        check_mounts("volumes", [MountSpec("/data", volume="a"), MountSpec("/data", volume="b")])
    with pytest.raises(InvalidRequest):
        check_spec(spec(volumes=(MountSpec("/data", volume="a"),), runtime="runsc"), None)
    check_spec(spec(volumes=(MountSpec("/data", volume="a"),)), None)


def test_what_a_caller_may_give() -> None:
    given = {"/b": VOLUME.read_only().sub_path("x").sub_path("y"), "/a": "data", "/c": VOLUME}
    assert mounts_of(given) == (
        MountSpec("/b", True, "x/y", volume="vol-1"),
        MountSpec("/a", volume="data"),
        MountSpec("/c", volume="vol-1"),
    )
    assert [each.path for each in in_order(mounts_of(given))] == ["/a", "/b", "/c"]
    assert isinstance(VOLUME.sub_path("x"), MountedVolume)
    wrong: list[Any] = [
        {"/a": 7},
        [{"volume": "x"}],
        [{"path": "/a", "read_only": "no"}],
        "data",
        [{"path": "/a", "z": 1}],
    ]
    for each in wrong:
        with pytest.raises(InvalidRequest):
            mounts_of(each)


def test_the_option_of_the_command_line() -> None:
    assert mounts(["data:/data", "data/a/b:/m:ro"]) == [
        MountSpec("/data", volume="data"),
        MountSpec("/m", True, "a/b", volume="data"),
    ]
    for wrong in ("data", "data:", ":/data", "data:/data:x", "a:/b:ro:x"):
        with pytest.raises(InvalidRequest):
            mounts([wrong])


def test_limits_are_in_whole_gib() -> None:
    check_limits(3 << 30, 1)
    for size, files in ((1, None), ((1 << 30) + 1, None), (None, 0), (True, None)):
        with pytest.raises(InvalidRequest):
            check_limits(size, files)


class _Kind(MountKind):
    name = "volume"

    def identity(self, spec: MountSpec) -> str:
        return spec.volume

    async def helper(self, spec: MountSpec, point: Path, directory: Path) -> Helper:
        raise NotImplementedError

    async def commit(self, spec: MountSpec, point: Path, directory: Path) -> None:
        raise NotImplementedError


@pytest.mark.anyio
async def test_a_mount_stays_for_a_minute_after_its_last_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []
    now = 0.0
    shape = spec().container_shape
    record = ContainerRecord("c-1", shape, 0.0, stage=Stage.READY, mounts=(MountSpec("/d", volume="vol-1"),))
    records = {"c-1": record}
    kept = Mounts({"volume": _Kind()}, tmp_path, tmp_path / "v", records.values, clock=lambda: now)
    mounted = Mounted("vol-1", _Kind(), record.mounts[0], tmp_path, tmp_path / "v" / "vol-1")
    mounted.served = Served("vol-1", record.mounts[0], "", os.getpid(), 0)
    kept._mounted["vol-1"] = mounted

    async def end(self: Mounted, *, force: bool) -> None:
        ended.append(force)

    async def well(self: Mounted, now: float, patience_s: float) -> None:
        return None

    monkeypatch.setattr(Mounted, "end", end)
    monkeypatch.setattr(Mounted, "broken", well)
    now = 10 * LINGER_S
    await kept.tend()
    assert [each.uses for each in kept.states()] == [1]
    records.clear()
    await kept.tend()
    now += LINGER_S - 1
    await kept.tend()
    assert ended == []
    now += 1
    await kept.tend()
    assert ended == [False]
    assert kept.states() == []


@pytest.fixture
def container(tmp_path: Path) -> Iterator[int]:
    """A process with a mount namespace of its own."""
    process = subprocess.Popen(["unshare", "-m", "--propagation", "private", "sh", "-c", "echo; exec sleep 60"],
                               stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    yield process.pid
    process.kill()
    process.communicate()


def _see(pid: int, command: str) -> str:
    return subprocess.run(
        ["nsenter", "-t", str(pid), "-m", "sh", "-c", command], capture_output=True, text=True, check=False
    ).stdout


def test_a_directory_is_put_into_a_namespace(tmp_path: Path, container: int) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "file").write_text("hello")
    (root / "out").symlink_to("/etc")
    (root / "up").symlink_to("..")
    target = str(tmp_path / "target" / "deep")
    tree = mount_namespaces.clone(root, "sub", read_only=True)
    worker = threading.Thread(target=mount_namespaces.attach, args=(container, tree, target))
    worker.start()
    worker.join()
    os.close(tree)
    assert _see(container, f"cat {target}/file; touch {target}/new || echo refused") == "hellorefused\n"
    assert not (Path(target) / "file").exists()  # here nothing is mounted
    made = mount_namespaces.clone(root, "new/deep", read_only=False)
    os.close(made)
    assert (root / "new" / "deep").is_dir()
    for name in ("out", "up", "out/ssl"):
        with pytest.raises(OSError, match="cross-device"):
            mount_namespaces.clone(root, name, read_only=False)
    with pytest.raises(FileNotFoundError):
        mount_namespaces.clone(root, "missing", read_only=True)


@pytest.mark.anyio
async def test_a_service_that_does_not_answer_is_told_until_it_does() -> None:
    watch, released, outcome = ServiceWatch(), threading.Event(), False

    def answers() -> bool:
        released.wait(10)
        return outcome

    async def look(now: float) -> float:
        waited_s = watch.look(now, answers)
        await asyncio.sleep(0.05)
        return waited_s

    assert await look(0.0) == 0.0
    assert (await look(1.0), watch.silent_since) == (1.0, None)
    assert (await look(60.0), watch.silent_since) == (60.0, 0.0)
    released.set()
    await asyncio.sleep(0.2)
    assert (await look(61.0), watch.silent_since) == (0.0, 0.0), "refused: told, and no reason to wait"
    outcome = True
    await look(80.0)
    await look(81.0)
    assert watch.silent_since is None


def test_whatever_an_object_storage_says_it_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not storage_answers(f"http://127.0.0.1:{silent.getsockname()[1]}/data", 0.2)
        assert not storage_answers(f"https://127.0.0.1:{silent.getsockname()[1]}/data", 0.2)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # it knows no HEAD: 501
        threading.Thread(target=server.serve_forever).start()
        try:
            assert storage_answers(f"http://127.0.0.1:{server.server_port}/data")
        finally:
            server.shutdown()
