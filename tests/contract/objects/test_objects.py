"""The object storage contract, over the server that a cluster has of its own."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.actors.objects import ObjectStore
from shoal.cluster.objects.access import S3Access, access_by_settings
from shoal.cluster.objects.keeper import ServerKeeper
from shoal.cluster.objects.keys import Keys
from shoal.cluster.objects.server import ObjectServer
from shoal.cluster.objects.state import look, try_out
from shoal.model.errors import InvalidRequest, NotFound, PermissionDenied, Unavailable
from shoal.model.settings import ObjectSettings, Settings
from tests.contract.objects.s3_server import CuttingProxy, served
from tests.fakes.objects import MemoryStore
from tests.ports import free_port


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ObjectServer, S3Access]]:
    with served(tmp_path_factory.mktemp("state")) as found:
        yield found


@pytest.fixture
def access(server: tuple[ObjectServer, S3Access], request: pytest.FixtureRequest) -> S3Access:
    """With a prefix of the test's own."""
    return replace(server[1], prefix=f"{request.node.name.replace('[', '-').replace(']', '')}/")


@pytest.fixture(params=["s3", "fake"])
def store(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    found = MemoryStore() if request.param == "fake" else request.getfixturevalue("access").connect()
    yield found
    found.close()


def test_an_object_is_written_read_listed_and_deleted(store: ObjectStore, tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    file = tmp_path / "content"
    file.write_bytes(content)
    store.check()
    assert store.head("blobs/sha256/aa") is None
    assert store.put("blobs/sha256/aa", file)
    assert not store.put("blobs/sha256/aa", file, replace=False)
    assert store.put("blobs/sha256/bb", b"", replace=False)
    assert b"".join(store.read("blobs/sha256/aa")) == content
    assert b"".join(store.read("blobs/sha256/aa", start=1000, length=500)) == content[1000:1500]
    assert b"".join(store.read("blobs/sha256/aa", start=(3 << 20) - 7)) == content[-7:]
    assert b"".join(store.read("blobs/sha256/aa", start=3 << 20)) == b""
    assert b"".join(store.read("blobs/sha256/bb")) == b""
    info = store.head("blobs/sha256/aa")
    assert info is not None
    assert info.size == 3 << 20
    assert abs(info.modified - time.time()) < 60
    assert {(each.key, each.size) for each in store.list("blobs/")} == {
        ("blobs/sha256/aa", 3 << 20),
        ("blobs/sha256/bb", 0),
    }
    store.delete(["blobs/sha256/aa", "blobs/sha256/bb"])
    store.delete(["blobs/sha256/aa", "never/there"])
    assert list(store.list("blobs/")) == []
    with pytest.raises(NotFound):
        list(store.read("blobs/sha256/aa"))
    with pytest.raises(NotFound):
        store.get("blobs/sha256/aa", tmp_path / "none")


def test_a_get_goes_on_where_the_file_ends(store: ObjectStore, tmp_path: Path) -> None:
    content = os.urandom(2 << 20)
    store.put("k", content)
    target = tmp_path / "t"
    target.write_bytes(content[:1234567])
    assert store.get("k", target) == len(content)
    assert target.read_bytes() == content
    assert store.get("k", target) == len(content)


def test_many_objects_are_listed_page_by_page(tmp_path: Path) -> None:
    directory = tmp_path / "objects" / "data" / "shoal" / "many"
    directory.mkdir(parents=True)
    for number in range(1100):
        (directory / f"{number:04}").write_bytes(b"x")
    with served(tmp_path) as (_, access):
        store = access.connect()
        assert len({each.key for each in store.list("many/")}) == 1100
        store.delete(f"many/{number:04}" for number in range(1100))
        assert list(store.list("many/")) == []


def test_a_get_goes_on_after_each_cut(access: S3Access, tmp_path: Path) -> None:
    content = os.urandom(8 << 20)
    access.connect().put("big", content)
    proxy = CuttingProxy(access)
    proxy.cut_after = [2 << 20, 2 << 20, 2 << 20]
    try:
        assert proxy.access.connect().get("big", tmp_path / "big") == len(content)
    finally:
        proxy.close()
    assert (tmp_path / "big").read_bytes() == content
    assert proxy.cuts >= 3


@pytest.mark.parametrize(
    ("changes", "error", "field"),
    [
        ({"keys": Keys("nobody", "x" * 40)}, PermissionDenied, "objects.credentials"),
        ({"bucket": "not-there"}, InvalidRequest, "objects.bucket"),
        ({"credentials": "/nowhere/credentials"}, PermissionDenied, "objects.credentials"),
        ({"ca": "/nowhere/ca.pem"}, InvalidRequest, "objects.ca"),
        ({"endpoint": f"http://127.0.0.1:{free_port()}"}, Unavailable, None),
    ],
)
def test_what_is_wrong_is_named(access: S3Access, changes: dict[str, object], error: type, field: str | None) -> None:
    with pytest.raises(error) as raised:
        replace(access, **changes).connect().check()
    assert raised.value.field == field


def test_credentials_come_from_a_file_and_stay_out_of_texts(
    server: tuple[ObjectServer, S3Access], tmp_path: Path
) -> None:
    at, access = server
    file = at.directory / "credentials"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(at.directory.stat().st_mode) == 0o700
    named = ObjectSettings(bucket=access.bucket, endpoint=access.endpoint, credentials=file, prefix="a/b")
    store = access_by_settings(named).connect()
    store.put("k", b"v")
    assert (at.directory / "data" / access.bucket / "a/b/k").read_bytes() == b"v"
    running = at.running()
    assert running is not None
    assert access.keys is not None
    assert access.keys.secret not in repr(access) + Path(f"/proc/{running.pid}/cmdline").read_text()


def test_a_server_that_is_killed_is_started_anew_with_what_it_had(tmp_path: Path) -> None:
    server = ObjectServer(tmp_path / "state")
    keeper = ServerKeeper(server, "127.0.0.1")
    settings = Settings(state_dir=tmp_path / "state")
    keeper.tend()
    assert look(settings).state == "idle"
    assert server.running() is None  # nobody needed it yet
    try_out(settings)
    access = keeper.access()
    try:
        store = access.connect()
        store.put("blobs/sha256/aa", b"here")
        first = server.running()
        assert first is not None
        os.kill(first.pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while server.running() is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert look(settings).state == "died"
        with pytest.raises(Unavailable):
            try_out(settings)
        with pytest.raises(Unavailable):
            store.head("blobs/sha256/aa")
        keeper.tend()
        second = server.running()
        assert second is not None
        assert second.address == first.address
        ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]
        assert int(first.address.rpartition(":")[2]) < int(ephemeral), "no outgoing connection takes it meanwhile"
        assert b"".join(store.read("blobs/sha256/aa")) == b"here"
        try_out(settings)
        assert keeper.access() == access
    finally:
        server.stop()
    assert server.running() is None
    assert look(settings).state == "idle"
    server.stop()
    try:  # who has mounted a volume knows it by its port
        assert keeper.access() == access
        server.stop()
        with socket.create_server(("127.0.0.1", int(first.address.rpartition(":")[2]))):
            assert keeper.access() != access
    finally:
        server.stop()
