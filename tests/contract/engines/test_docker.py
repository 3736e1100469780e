"""What only a real daemon can show: enforced limits, images of all kinds, broken connections."""

from __future__ import annotations

import asyncio
import gc
import io
import tarfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from shoal.actors.engines.contract import Ability, ContainerState, EngineEvent, EventKind
from shoal.actors.engines.docker import DockerEngine
from shoal.model.errors import Unavailable
from tests.contract.engines.labs import LABEL, DockerLab, MiB, engine_address

pytestmark = [pytest.mark.anyio, pytest.mark.engine]


def layer(*files: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name in files:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    return made.getvalue()


@asynccontextmanager
async def imported(lab: DockerLab, *changes: str, files: tuple[str, ...] = ()) -> AsyncIterator[str]:
    """An image with nothing in it but `files`, all empty."""
    name = f"shoal-test/{lab.labels[LABEL]}:1"
    await asyncio.to_thread(
        lab.client.import_image_from_data, layer(*files), repository=name.split(":")[0], tag="1", changes=list(changes)
    )
    try:
        yield name
    finally:
        await asyncio.to_thread(lab.client.remove_image, name, force=True)


async def test_an_image_with_nothing_in_it_starts(docker_lab: DockerLab) -> None:
    async with imported(docker_lab) as image:
        container = await docker_lab.start(image=image)
        assert container.state is ContainerState.RUNNING
        assert await docker_lab.engine.disk_usage(container.key, limit=MiB) < MiB
        await docker_lab.engine.remove(container.key)


async def test_what_an_image_says_goes_to_the_agent_and_not_to_the_daemon(docker_lab: DockerLab) -> None:
    changes = (
        "USER nobody:nogroup",
        "WORKDIR /not/there",
        "ENV A=b=c",
        'ENTRYPOINT ["/no/such"]',
        'CMD ["no", "such"]',
        "VOLUME /volume",
        "LABEL shoal.key=c-forged",
        "HEALTHCHECK --interval=1s CMD /no/such",
    )
    async with imported(docker_lab, *changes) as image:
        info = await docker_lab.engine.images.get(image)
        assert (info.config.user, info.config.workdir, info.config.env["A"]) == ("nobody:nogroup", "/not/there", "b=c")
        container = await docker_lab.start(image=image)
        assert container.state is ContainerState.RUNNING
        seen = await asyncio.to_thread(docker_lab.client.inspect_container, f"shoal-{container.key}")
        environ = set(seen["Config"]["Env"])
        assert {"SHOAL_USER=nobody:nogroup", "SHOAL_WORKDIR=/not/there", "A=b=c"} <= environ
        assert seen["Config"]["Labels"]["shoal.key"] == container.key
        assert "Health" not in seen["State"]
        volumes = [mount for mount in seen["Mounts"] if mount["Type"] == "volume"]
        assert len(volumes) == 1
        # What is written to a volume that the image declares counts, and goes with the container.
        await asyncio.to_thread(Path(volumes[0]["Source"], "file").write_bytes, b"x" * MiB)
        assert await docker_lab.engine.disk_usage(container.key, limit=1 << 40) >= MiB
        await docker_lab.engine.remove(container.key)
        assert not await asyncio.to_thread(Path(volumes[0]["Source"]).exists)


async def test_an_image_that_was_replaced_since_it_was_looked_up(docker_lab: DockerLab) -> None:
    async with imported(docker_lab) as image:
        before = await docker_lab.engine.images.get(image)
        await asyncio.to_thread(docker_lab.client.remove_image, image, force=True)
        async with imported(docker_lab, files=("another",)) as same:
            assert same == image
            await docker_lab.start(image=image)
            assert (await docker_lab.engine.images.get(image)).digest != before.digest
            for key in await docker_lab.remains():
                await docker_lab.engine.remove(key)
        # The outer block removes it, too.
        await asyncio.to_thread(
            docker_lab.client.import_image_from_data, layer(), repository=image.split(":")[0], tag="1"
        )


async def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for address in (f"unix://{tmp_path}/none.sock", f"unix://{tmp_path}/file", "tcp://127.0.0.1:1"):
        engine = DockerEngine(address)
        with pytest.raises(Unavailable, match="shoal doctor"):
            await engine.open()
        await engine.close()


class Proxy:
    """Stands between engine and daemon, and breaks all connections when told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def begin(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def end(self) -> None:
        """Nobody is there any more."""
        assert self._server is not None
        self._server.close()
        self.path.unlink(missing_ok=True)
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        daemon = (engine_address() or "").removeprefix("unix://")
        daemon_reader, daemon_writer = await asyncio.open_unix_connection(daemon)
        both = {writer, daemon_writer}
        if self._server is None or not self._server.is_serving():
            # It ended while this connection was being made.
            for end in both:
                end.transport.abort()
            return
        self._writers |= both
        await asyncio.gather(self._copy(reader, daemon_writer), self._copy(daemon_reader, writer))
        self._writers -= both

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            # Broken, as the test wished.
            pass
        writer.transport.abort()


@pytest.fixture
def collected() -> Iterator[None]:
    """What the test leaves to the garbage collector does not wait for another test."""
    yield
    gc.collect()


def lost_sockets(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Coroutine[Any, Any, None]]:
    """The SDK does not close the socket that it made where nobody answers on it."""
    pytest.mark.usefixtures("collected")(test)
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")(test)
    return test


@lost_sockets
async def test_events_go_on_after_the_daemon_was_away_and_none_is_lost(docker_lab: DockerLab, tmp_path: Path) -> None:
    proxy = Proxy(tmp_path / "proxy.sock")
    await proxy.begin()
    engine = DockerEngine(f"unix://{proxy.path}")
    await engine.open()
    seen: asyncio.Queue[EngineEvent] = asyncio.Queue()

    async def listen() -> None:
        async for event in engine.events(docker_lab.labels):
            seen.put_nowait(event)

    listening = asyncio.create_task(listen())
    try:
        first, second, third = [await docker_lab.start() for _ in range(3)]
        await docker_lab.kill(first)
        assert (await asyncio.wait_for(seen.get(), 10)).key == first.key
        await proxy.end()
        with pytest.raises(Unavailable):
            await engine.get(second.key)
        await docker_lab.kill(second)
        async with asyncio.timeout(20):
            # Asked past the proxy, so no event can tell.
            while (await docker_lab.engine.get(second.key)).state is not ContainerState.EXITED:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await proxy.begin()
        await docker_lab.kill(third)
        told = [await asyncio.wait_for(seen.get(), 10) for _ in range(2)]
        assert told == [EngineEvent(EventKind.EXITED, c.key, 137) for c in (second, third)]
        assert (await engine.get(second.key)).state is ContainerState.EXITED
    finally:
        await engine.close()
        await asyncio.wait_for(listening, 5)
        await proxy.end()
    assert seen.empty()


@lost_sockets
async def test_a_start_whose_connection_breaks_is_undone_or_found_by_its_labels(
    docker_lab: DockerLab, tmp_path: Path
) -> None:
    proxy = Proxy(tmp_path / "proxy.sock")
    await proxy.begin()
    engine = DockerEngine(f"unix://{proxy.path}")
    await engine.open()
    spec = docker_lab.spec()
    starting = asyncio.create_task(engine.start(spec))
    await asyncio.sleep(0.05)
    await proxy.end()
    with pytest.raises(Unavailable):
        await starting
    await proxy.begin()
    # What nobody could undo then is found now, or once the daemon has made it, and removed like any.
    await asyncio.sleep(0.5)
    async with asyncio.timeout(20):
        while True:
            for container in await engine.list(docker_lab.labels):
                assert container.key == spec.key
                await engine.remove(container.key)
            if await docker_lab.remains() == []:
                break
    await engine.close()
    await proxy.end()


async def test_closing_does_not_wait_for_events(docker_lab: DockerLab) -> None:
    engine = DockerEngine(engine_address())
    await engine.open()
    streams = [engine.events(docker_lab.labels) for _ in range(3)]
    waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
    await asyncio.sleep(0.1)
    # At once; but a machine may stand still for seconds.
    await asyncio.wait_for(engine.close(), 20)
    ended = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)
    assert all(isinstance(end, StopAsyncIteration) for end in ended)


async def test_abilities_are_those_of_the_daemon(docker_lab: DockerLab) -> None:
    info = await asyncio.to_thread(docker_lab.client.info)
    assert {Ability.PULL, Ability.PAUSE} <= docker_lab.engine.abilities
    assert Ability.CHECKPOINT not in docker_lab.engine.abilities
    assert set(docker_lab.engine.runtimes) <= set(info["Runtimes"])
    assert "runsc" not in docker_lab.engine.runtimes, "it would have no network"
