"""Images from node to node: two layer stores, and between them the server that a cluster has of its own."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from shoal.actors.engines.image_store import ImageConfig
from shoal.actors.engines.oci.layers import LayerStore
from shoal.actors.node.image_transfer import ImageTransfer
from shoal.actors.objects import ObjectAccess, ObjectStore
from shoal.actors.stored_images import BLOBS, IMAGES, LAYERS, key, read_image
from shoal.cluster.objects.access import S3Access
from shoal.cluster.objects.server import ObjectServer
from shoal.model.errors import FailedPrecondition, ImageNotFound, Unavailable
from tests.contract.objects.s3_server import CuttingProxy, served
from tests.layers import add_upper

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("as_root"),  # owners and overlayfs's attributes are root's to set
]


@dataclass
class Counting(ObjectAccess):
    """Counts the calls of the store that it leads to."""

    inner: ObjectAccess
    puts: list[str] = field(default_factory=list)
    gets: list[str] = field(default_factory=list)

    def connect(self) -> ObjectStore:
        store: Any = self.inner.connect()
        put, read = store.put, store.read

        def counted_put(name: str, content: bytes | Path, *, replace: bool = True) -> bool:
            self.puts.append(name)
            return bool(put(name, content, replace=replace))

        def counted_read(name: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
            if length is None:  # of a layer
                self.gets.append(name)
            yield from read(name, start=start, length=length)

        store.put, store.read = counted_put, counted_read
        return store  # type: ignore[no-any-return]


@dataclass
class OneNode:
    """A node as far as its images go."""

    layers: LayerStore
    transfer: ImageTransfer
    access: Counting
    damaged: list[str]


class Nodes:
    """Makes nodes."""

    def __init__(self, directory: Path, access: ObjectAccess) -> None:
        self._directory = directory
        self._access = access
        self.asked: list[str] = []

    async def _ensure(self, digest: str) -> None:
        self.asked.append(digest)

    def make(self, name: str, access: ObjectAccess | None = None) -> OneNode:
        layers = LayerStore(self._directory / name / "layers")
        layers.open()
        counting, damaged = Counting(access or self._access), []

        async def reach() -> ObjectAccess:
            return counting

        async def note(digest: str) -> None:
            damaged.append(digest)

        transfer = ImageTransfer(layers, reach, self._directory / name / "transfer", note, self._ensure)
        return OneNode(layers, transfer, counting, damaged)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ObjectServer, S3Access]]:
    with served(tmp_path_factory.mktemp("state")) as found:
        yield found


@pytest.fixture
def access(server: tuple[ObjectServer, S3Access], request: pytest.FixtureRequest) -> S3Access:
    return replace(server[1], prefix=f"{request.node.name}/")


@pytest.fixture
def nodes(tmp_path: Path, access: S3Access) -> Nodes:
    return Nodes(tmp_path, access)


def image_of(node: OneNode, directory: Path, content: bytes = b"base", layers: int = 3) -> str:
    """The digest of an image of several layers."""
    archive = directory / "root.tar"
    with tarfile.open(archive, "w") as made:
        entry = tarfile.TarInfo("base")
        entry.size = len(content)
        made.addfile(entry, io.BytesIO(content))
    digest = node.layers.add_root_filesystem(archive, "base", ImageConfig(user="nobody")).digest
    for number in range(layers - 1):
        upper = directory / f"upper-{number}"
        upper.mkdir()
        (upper / f"file-{number}").write_text(f"content {number}")
        os.chown(upper / f"file-{number}", 1234, 5678)
        digest = add_upper(node.layers, digest, upper, ImageConfig(user="nobody")).digest
    return digest


def files_of(node: OneNode, digest: str) -> dict[str, tuple[bytes, int]]:
    return {
        path.name: (path.read_bytes(), path.stat().st_uid)
        for lower in node.layers.lower_dirs(digest)
        for path in lower.iterdir()
    }


async def test_an_image_that_one_node_stored_starts_on_another(nodes: Nodes, access: S3Access, tmp_path: Path) -> None:
    first, second = nodes.make("first"), nodes.make("second")
    digest = image_of(first, tmp_path)
    with pytest.raises(ImageNotFound):
        await second.transfer.fetch(digest, "copy")
    assert nodes.asked == [digest]
    await asyncio.gather(*(first.transfer.put(digest) for _ in range(5)))
    assert len(first.access.puts) == len(set(first.access.puts)) == 3 * 2 + 2
    await asyncio.gather(*(second.transfer.fetch(digest, "copy") for _ in range(5)))
    assert len(second.access.gets) == 3
    assert files_of(second, digest) == files_of(first, digest)
    found = second.layers.find("copy")
    assert found is not None
    assert found.digest == digest
    assert found.config.user == "nobody"
    assert not list((tmp_path / "second/transfer").iterdir())
    # A second image that shares its layers stores, and fetches, what is new.
    upper = tmp_path / "more"
    upper.mkdir()
    (upper / "more").write_text("more")
    later = add_upper(first.layers, digest, upper, ImageConfig()).digest
    first.access.puts.clear()
    second.access.gets.clear()
    await first.transfer.put(later)
    await second.transfer.fetch(later, "later")
    assert len(first.access.puts) == 2 + 2
    assert len(second.access.gets) == 1
    # And a node that has nothing to do does nothing.
    first.access.puts.clear()
    await first.transfer.put(later)
    assert first.access.puts == []


async def test_a_fetch_that_was_cut_goes_on(nodes: Nodes, access: S3Access, tmp_path: Path) -> None:
    first = nodes.make("first")
    content = os.urandom(6 << 20)
    digest = image_of(first, tmp_path, content, layers=1)
    await first.transfer.put(digest)
    proxy = CuttingProxy(access)
    try:
        second = nodes.make("second", proxy.access)
        proxy.cut_after = [1 << 20] * 3
        await second.transfer.fetch(digest, "copy")
        assert proxy.cuts >= 3
        assert files_of(second, digest)["base"][0] == content
    finally:
        proxy.close()
    # A node that was killed goes on with what is in its file, also where that is not what it should be.
    blob = next(each.digest for each in read_image(digest, await read(access, key(IMAGES, digest))).layers)
    for name, left in (("third", (await read(access, key(BLOBS, blob)))[:100_000]), ("fourth", b"x" * 100_000)):
        node = nodes.make(name)
        (tmp_path / name / "transfer").mkdir()
        (tmp_path / name / "transfer" / f"in-{blob.removeprefix('sha256:')}").write_bytes(left)
        await node.transfer.fetch(digest, "copy")
        assert files_of(node, digest)["base"][0] == content


@pytest.mark.parametrize("harm", ["truncated", "other bytes", "gone", "no configuration", "no manifest"])
async def test_what_is_damaged_is_refused_and_stored_anew(
    nodes: Nodes, access: S3Access, tmp_path: Path, harm: str
) -> None:
    first, second = nodes.make("first"), nodes.make("second")
    digest = image_of(first, tmp_path)
    await first.transfer.put(digest)
    store = access.connect()
    layer = read_image(digest, await read(access, key(IMAGES, digest))).layers[1]
    blob = await read(access, key(BLOBS, layer.digest))
    if harm == "truncated":
        store.put(key(BLOBS, layer.digest), blob[:-10])
    elif harm == "other bytes":
        store.put(key(BLOBS, layer.digest), blob[:-10] + bytes(10))
    elif harm == "gone":
        store.delete([key(BLOBS, layer.digest)])
    elif harm == "no configuration":
        store.put(key(BLOBS, digest), b"{}")
    else:
        store.put(key(IMAGES, digest), b'{"config": 3}')
    with pytest.raises(FailedPrecondition) as raised:
        await second.transfer.fetch(digest, "copy")
    assert raised.value.state == "damaged"
    assert second.damaged == [digest]
    assert second.layers.find("copy") is None
    await first.transfer.put(digest, again=True)
    await second.transfer.fetch(digest, "copy")
    assert files_of(second, digest) == files_of(first, digest)


async def test_a_storage_that_is_away_is_asked_again_once_it_is_back(tmp_path: Path) -> None:
    server = ObjectServer(tmp_path / "state")
    nodes = Nodes(tmp_path, server.ensure("127.0.0.1"))
    try:
        first, second = nodes.make("first"), nodes.make("second")
        digest = image_of(first, tmp_path)
        running = server.running()
        assert running is not None
        os.kill(running.pid, signal.SIGSTOP)  # it hangs, and then it is gone
        timer = threading.Timer(0.5, os.kill, (running.pid, signal.SIGKILL))
        timer.start()
        with pytest.raises(Unavailable):
            await first.transfer.put(digest)
        timer.join()
        await asyncio.to_thread(server.ensure, "127.0.0.1")
        await first.transfer.put(digest)
        await second.transfer.fetch(digest, "copy")
        assert files_of(second, digest) == files_of(first, digest)
        assert [info.key for info in server.access(running.address).connect().list(LAYERS)]
    finally:
        server.stop()


async def read(access: S3Access, name: str) -> bytes:
    return await asyncio.to_thread(lambda: b"".join(access.connect().read(name)))
