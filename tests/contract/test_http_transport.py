"""The HTTP transport through the real API, before a cluster in memory: every call of the contract, there and back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.client.cluster import Client
from shoal.model import verbs
from shoal.model.access import ANY_ENVIRONMENT, Quota, Scope
from shoal.model.errors import (
    AlreadyExists,
    EnvironmentNotFound,
    ImageNotFound,
    InvalidRequest,
    PermissionDenied,
    QuotaExceeded,
    SandboxEnded,
    SandboxNotFound,
    TokenNotFound,
    TunnelNotFound,
    Unauthenticated,
    Unavailable,
)
from shoal.model.info import Listing, SandboxInfo
from shoal.model.spec import Resources, SandboxSpec
from shoal.model.states import State
from shoal.transport import http as http_transport
from shoal.transport.http import HttpTransport
from tests.contract.api_server import ApiServer
from tests.fakes.cluster import FakeTransport

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
SPEC = SandboxSpec("image", Resources(0.1, 1.0, 64, 128, 100, 10), tags={"team": "a:b"}, env={"A": "secret"})


class Served:
    """A cluster in memory, its API, and a client's transport to it."""

    def __init__(self, fake: FakeTransport, api: ApiServer, http: HttpTransport, token: str) -> None:
        self.fake = fake
        self.api = api
        self.http = http
        self.token = token

    async def with_token(self, environment: str, scope: Scope) -> HttpTransport:
        _, text = await self.fake.ask(verbs.create_token, "other", environment, scope, None)
        return HttpTransport(self.api.url, text)


@asynccontextmanager
async def served() -> AsyncIterator[Served]:
    fake = FakeTransport()
    api = await ApiServer.start(fake)
    _, token = await fake.ask(verbs.create_token, "tests", ANY_ENVIRONMENT, Scope.ADMIN, None)
    http = await HttpTransport.open(api.url, token)
    try:
        yield Served(fake, api, http, token)
    finally:
        await http.close()
        await api.stop()


# Sandboxes


async def test_a_sandbox_from_its_create_to_its_end() -> None:
    async with served() as place:
        http = place.http
        made = await http.create(replace(SPEC, name="web"), deadline=5)
        assert made.state is State.RUNNING
        assert made.spec == replace(SPEC, name="web", env={})  # which are not told again
        assert place.fake.named("create")[-1].env == {"A": "secret"}
        assert await http.ask(verbs.get, made.id) == await http.ask(verbs.find, "web", "main") == made
        assert (await http.ask(verbs.set_tags, made.id, {"x": "ü y"})).tags == {"x": "ü y"}
        assert not (await http.wait(made.id, 0.05)).ended
        waiting = asyncio.create_task(http.wait(made.id, None))
        assert (await http.terminate(made.id)).ended
        assert (await waiting).reason == "terminated"
        assert (await http.terminate(made.id)).ended
        with pytest.raises(SandboxNotFound):
            await http.ask(verbs.get, "sb-none")
        with pytest.raises(SandboxNotFound):
            await http.ask(verbs.find, "none", "main")


async def test_the_same_key_gives_the_same_sandbox() -> None:
    async with served() as place:
        keyed = replace(SPEC, idempotency_key="run 17, again")
        first, second = [await place.http.create(keyed, deadline=5) for _ in range(2)]
        assert first.id == second.id
        for bad in ("", " x", "ü", "x" * 129):
            with pytest.raises(InvalidRequest) as caught:
                await place.http.create(replace(SPEC, idempotency_key=bad), deadline=5)
            assert caught.value.field == "idempotency_key"


async def test_a_key_that_is_none_leaves_nothing_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_transport, "_BATCH_BYTES", 1)  # each in a call of its own
    async with served() as place:
        keyed = [replace(SPEC, idempotency_key=key) for key in ("a", "b", "clé")]
        with pytest.raises(InvalidRequest) as caught:
            await place.http.create_many(keyed, deadline=5)
        assert caught.value.field == "idempotency_key"
        assert await place.http.list(Listing()) == []


async def test_the_errors_of_a_create_come_as_they_are() -> None:
    async with served() as place:
        place.fake.fail_next("create", ImageNotFound("there is no such image", image="x"))
        with pytest.raises(ImageNotFound) as missing:
            await place.http.create(SPEC, deadline=5)
        assert missing.value.fields["image"] == "x"
        await place.http.create(replace(SPEC, name="one"), deadline=5)
        with pytest.raises(AlreadyExists) as taken:
            await place.http.create(replace(SPEC, name="one"), deadline=5)
        assert taken.value.field == "name"
        with pytest.raises(InvalidRequest) as wrong:
            await place.http.create(replace(SPEC, timeout=-1), deadline=5)
        assert wrong.value.field == "timeout"


async def test_pages_are_put_together() -> None:
    async with served() as place:
        made = [await place.fake.create(replace(SPEC, tags={"n": str(n % 2)}), deadline=5) for n in range(25)]
        newest_first = [info.id for info in reversed(made)]
        assert [info.id for info in await place.http.list(Listing())] == newest_first
        assert [info.id for info in await place.http.list(Listing(limit=7))] == newest_first[:7]
        place_of_seventh = (made[-7].created_at, made[-7].id)
        assert [info.id for info in await place.http.list(Listing(before=place_of_seventh))] == newest_first[7:]
        assert len(await place.http.list(Listing(tags={"n": "1"}))) == 12
        assert await place.http.list(Listing(states=(State.PENDING,))) == []
        await place.fake.terminate(made[0].id)
        assert len(await place.http.list(Listing())) == 24
        assert len(await place.http.list(Listing(include_ended=True))) == 25


@pytest.mark.parametrize("key", ["git:branch", ":", "100%", "%3A", "a b", "ü&=", "k" * 255 + ":"])
async def test_listed_by_any_tag(key: str) -> None:
    async with served() as place:
        made = await place.http.create(replace(SPEC, tags={key: "a:%3A", "n": "1"}), deadline=5)
        await place.http.create(replace(SPEC, tags={"git": "branch:main"}), deadline=5)
        assert [info.id for info in await place.http.list(Listing(tags={key: "a:%3A"}))] == [made.id]
        assert await place.http.list(Listing(tags={key: "other"})) == []


async def test_many_at_once_each_with_its_own_outcome() -> None:
    async with served() as place:
        specs = [replace(SPEC, name=f"box-{n}") for n in range(1200)]
        specs[3] = replace(SPEC, name="box-2")
        made = await place.http.create_many(specs, deadline=30)
        assert len(made) == 1200
        assert isinstance(made[3], AlreadyExists)
        good = [each for each in made if isinstance(each, SandboxInfo)]
        assert [info.spec.name for info in good] == [f"box-{n}" for n in range(1200) if n != 3]
        assert [len(batch) for batch in place.fake.named("create_many")] == [1000, 200]


async def test_creates_that_are_too_large_for_one_call_are_several() -> None:
    async with served() as place:
        env = {f"V{n}": "x" * 120_000 for n in range(4)}
        specs = [replace(SPEC, name=f"box-{n}", env=env) for n in range(12)]
        made = await place.http.create_many(specs, deadline=30)
        assert [each.spec.name for each in made if isinstance(each, SandboxInfo)] == [f"box-{n}" for n in range(12)]
        assert [len(batch) for batch in place.fake.named("create_many")] == [2] * 6


async def test_creates_of_a_later_call_that_fails_have_its_error() -> None:
    async with served() as place:
        specs = [replace(SPEC, name=f"box-{n}") for n in range(1200)]
        making = asyncio.create_task(place.http.create_many(specs, deadline=30))
        while not place.fake.named("create_many"):  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.001)
        place.fake.fail_next("create_many", QuotaExceeded("too many"))
        made = await making
        assert sum(isinstance(each, SandboxInfo) for each in made) == 1000
        assert all(isinstance(each, QuotaExceeded) for each in made[1000:])
        assert len(made) == 1200


async def test_a_create_that_is_given_up_leaves_nothing() -> None:
    async with served() as place:
        place.fake.start_s = 30
        for create in (
            place.http.create(SPEC, deadline=20),
            place.http.create_many([SPEC, SPEC, SPEC], deadline=20),
        ):
            creating = asyncio.create_task(_any(create))
            events = Client(place.fake).events()
            assert await events.next.aio(timeout=20) is not None  # it is being made
            creating.cancel()
            with pytest.raises(asyncio.CancelledError):
                await creating
            assert await place.fake.list(Listing()) == []
        assert len(await place.fake.list(Listing(include_ended=True))) == 4


async def _any(call: Any) -> Any:
    return await call


async def test_a_create_that_nobody_waits_for() -> None:
    async with served() as place:
        place.fake.start_s = 0.3
        info = await place.http.create(SPEC, deadline=5, wait=False)
        assert info.state is State.PENDING
        assert (await place.http.terminate(info.id)).ended


async def test_the_rest_of_what_a_cluster_tells() -> None:
    async with served() as place:
        assert await place.http.defaults() == await place.fake.defaults()
        assert await place.http.ask(verbs.nodes) == await place.fake.ask(verbs.nodes)
        ended = await place.fake.create(replace(SPEC, command=("echo", "hi")), deadline=5)
        await place.fake.terminate(ended.id)
        kept = await place.fake.ask(verbs.logs, ended.id, 1, 0)
        told = await place.http.ask(verbs.logs, ended.id, 1, 0)
        assert (told.offset, told.data, told.end) == (0, kept.data, True)
        with pytest.raises(SandboxEnded) as caught:
            await place.http.agent(ended.id)
        assert caught.value.reason == "completed"
        with pytest.raises(SandboxNotFound):
            await place.http.agent("sb-none")


# Tunnels and ports


async def test_tunnels() -> None:
    async with served() as place:
        info = await place.http.create(SPEC, deadline=5)
        tunnel = await place.http.ask(verbs.expose, info.id, 8080, protocol="http", public=False)
        assert (tunnel.port, tunnel.protocol, tunnel.public) == (8080, "http", False)
        assert tunnel.token
        assert [each.port for each in await place.http.ask(verbs.tunnels, info.id)] == [8080]
        assert (await place.http.ask(verbs.tunnel_token, info.id, 8080, 60)).token
        await place.http.ask(verbs.unexpose, info.id, 8080)
        await place.http.ask(verbs.unexpose, info.id, 8080)
        with pytest.raises(TunnelNotFound):
            await place.http.ask(verbs.tunnel_token, info.id, 8080, 60)


async def test_a_port_is_a_byte_stream_with_two_ends() -> None:
    async with served() as place:
        info = await place.http.create(SPEC, deadline=5)
        stream = await place.http.dial(info.id, 7)  # an echo
        data = bytes(range(256)) * 4096
        writing = asyncio.create_task(stream.write(data))
        got = b""
        while len(got) < len(data):
            piece = await stream.read()
            assert 0 < len(piece) <= 256 << 10
            got += piece
        await writing
        assert got == data
        await stream.write_eof()
        assert await stream.read() == b""
        assert await stream.read() == b""
        await stream.close()
        await stream.close()
        with pytest.raises(Unavailable):
            await place.http.dial(info.id, 9)
        with pytest.raises(InvalidRequest):
            await place.http.dial(info.id, 99999)


async def test_a_stream_that_breaks_says_so() -> None:
    async with served() as place:
        info = await place.http.create(SPEC, deadline=5)
        stream = await place.http.dial(info.id, 7)
        reading = asyncio.create_task(stream.read())
        await asyncio.sleep(0)
        place.api.drop_connections()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(reading, 5)
        with pytest.raises(Unavailable):
            await stream.write(b"x")
        await stream.close()


# Administration


async def test_environments() -> None:
    async with served() as place:
        admin = place.http
        made = await admin.ask(verbs.create_environment, "team", Quota(sandboxes=2, cpu=1.5))
        assert (made.name, made.quota) == ("team", Quota(sandboxes=2, cpu=1.5))
        assert "team" in [each.name for each in await admin.ask(verbs.environments)]
        assert (await admin.ask(verbs.set_quota, "team", Quota(memory=512))).quota == Quota(memory=512)
        assert (await admin.ask(verbs.environment, "team")).quota == Quota(memory=512)
        await admin.ask(verbs.delete_environment, "team")
        for call in (admin.ask(verbs.environment, "team"), admin.ask(verbs.delete_environment, "team")):
            with pytest.raises(EnvironmentNotFound):
                await call


async def test_tokens_and_what_they_may() -> None:
    async with served() as place:
        info, text = await place.http.ask(verbs.create_token, "ci", "dev", Scope.RUN, 3600)
        assert (info.environment, info.scope, info.valid(time.time())) == ("dev", Scope.RUN, True)
        assert info in await place.http.ask(verbs.tokens)
        other = await HttpTransport.open(place.api.url, text)
        assert await other.default_environment() == "dev"
        assert await place.http.default_environment() == "main"
        with pytest.raises(PermissionDenied):
            await other.ask(verbs.tokens)
        mine = await place.http.create(SPEC, deadline=5)
        for call in (
            other.ask(verbs.get, mine.id),
            other.terminate(mine.id),
            other.agent(mine.id),
            other.dial(mine.id, 7),
        ):
            with pytest.raises(SandboxNotFound):
                await _any(call)
        assert (await place.http.ask(verbs.revoke_token, info.id)).revoked_at is not None
        with pytest.raises(Unauthenticated):
            await other.ask(verbs.get, mine.id)
        with pytest.raises(Unauthenticated):
            await other.agent(mine.id)
        with pytest.raises(TokenNotFound):
            await place.http.ask(verbs.revoke_token, "tk-none")
        await other.close()


async def test_a_token_that_may_only_look_enters_nothing() -> None:
    async with served() as place:
        info = await place.http.create(SPEC, deadline=5)
        reader = await place.with_token("main", Scope.READ)
        assert (await reader.ask(verbs.get, info.id)).id == info.id
        for call in (reader.agent(info.id), reader.create(SPEC, deadline=5), reader.dial(info.id, 7)):
            with pytest.raises(PermissionDenied):
                await _any(call)
        await reader.close()


async def test_events_are_followed() -> None:
    async with served() as place:
        client = Client(place.http)
        events = client.events()
        await events.start.aio()
        assert await events.next.aio(timeout=0.1) is None
        info = await place.http.create(SPEC, deadline=5)
        coming = asyncio.create_task(events.next.aio(timeout=10))
        first = await coming
        assert first is not None
        assert (first.sandbox_id, first.environment) == (info.id, "main")
        of_it = client.events(after=0, sandbox_id=info.id)
        await place.http.terminate(info.id)
        kinds = [event.kind async for event in of_it]  # ends with the sandbox
        assert kinds[0] == "created"
        assert kinds[-1] == "terminated"
        await events.close.aio()
        assert await events.next.aio() is None


# The client


async def test_many_sandboxes_through_the_client() -> None:
    async with served() as place:
        client = Client(place.http)
        create = shoal.Sandbox.create_many.aio
        many = await create(3, tags={"job": "x"}, idempotency_key="k", client=client)
        assert len({sandbox.id for sandbox in many}) == 3
        assert [s.id for s in await create(3, tags={"job": "x"}, idempotency_key="k", client=client)] == [
            sandbox.id for sandbox in many
        ]
        two = await create([{"name": "a"}, {"name": "b", "tags": {"own": "1"}}], tags={"job": "y"}, client=client)
        assert [(sandbox.name, sandbox.tags) for sandbox in two] == [("a", {"job": "y"}), ("b", {"own": "1"})]
        with pytest.raises(AlreadyExists):
            await create([{"name": "c"}, {"name": "a"}], client=client)
        assert {s.name for s in await shoal.Sandbox.list.aio(client=client)} == {None, "a", "b"}  # no c
        mixed = await create([{"name": "d"}, {"name": "a"}], return_errors=True, client=client)
        assert isinstance(mixed[0], shoal.Sandbox)
        assert isinstance(mixed[1], AlreadyExists)
        for wrong, field in (({"imag": "x"}, "imag"), ({"command": "ls"}, "command")):
            with pytest.raises(InvalidRequest) as caught:
                await create([wrong], client=client)  # type: ignore[list-item]
            assert caught.value.field == field
        for bad in (-1, True, "3", [1]):
            with pytest.raises(InvalidRequest):
                await create(bad, client=client)  # type: ignore[call-overload]


async def test_a_token_of_one_environment_works_in_it() -> None:
    async with served() as place:
        client = Client(await place.with_token("dev", Scope.RUN))
        sandbox = await shoal.Sandbox.create.aio(name="mine", client=client)
        assert place.fake.named("create")[-1].environment == "dev"
        assert (await shoal.Sandbox.from_name.aio("mine", client=client)).id == sandbox.id
        pages = await shoal.Sandbox.list.aio(limit=1, client=client)
        assert [each.id for each in pages] == [sandbox.id]
        assert await shoal.Sandbox.list.aio(after=pages[-1], client=client) == []
        assert await shoal.Sandbox.list.aio(states=["pending"], region="eu", client=client) == []
        with pytest.raises(EnvironmentNotFound):
            await shoal.Sandbox.create.aio(environment="main", client=client)
        await client.close.aio()


async def test_a_transport_may_be_used_again_after_it_was_closed() -> None:
    async with served() as place:
        await place.http.close()
        await place.http.close()
        assert await place.http.list(Listing()) == []


def test_loops_and_threads_leave_nothing_open(tmp_path: Path) -> None:
    # In an interpreter of its own, which tells of every session and socket that nobody closed.
    code = """
        import asyncio, gc, threading
        import shoal
        from shoal.client.cluster import Client
        from shoal.transport.http import HttpTransport
        from tests.contract.test_http_transport import served
        from tests.fakes.cluster import stop_all

        async def main():
            async with served() as place:
                http = HttpTransport(place.api.url, place.token)
                client = Client(http)

                async def use():
                    sandbox = await shoal.Sandbox.create.aio(client=client)
                    stream = await http.dial(sandbox.id, 7)
                    await stream.write(b"x")
                    assert await stream.read() == b"x"
                    await stream.close()
                    await sandbox.terminate.aio()

                def in_a_loop():
                    for _ in range(2):
                        asyncio.run(use())

                def blocking():
                    shoal.Sandbox.create(client=client).terminate()

                threads = [threading.Thread(target=work) for work in (in_a_loop, in_a_loop, blocking, blocking)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    await asyncio.to_thread(thread.join)
                await use()

        asyncio.run(main())
        gc.collect()
        stop_all()
    """
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stderr) == (0, "")
