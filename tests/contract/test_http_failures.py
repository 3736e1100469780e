"""What the HTTP transport makes of servers that fail, refuse, or are something else: what is asked again, and what is
told.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import socket
import sys
import time
from typing import Any

import pytest

from shoal import Sandbox
from shoal.client.cluster import Client
from shoal.model import verbs
from shoal.model.access import Quota, Scope
from shoal.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidRequest,
    PermissionDenied,
    QuotaExceeded,
    SandboxNotFound,
    ShoalError,
    Unauthenticated,
    Unavailable,
)
from shoal.model.http import PROBLEM, problem
from shoal.model.sandbox_json import info_to_json
from shoal.transport import http, http_calls
from shoal.transport.http import HttpTransport
from tests.contract.http_peer import (
    INFO,
    RESET,
    SELF,
    SPEC,
    Answer,
    Asked,
    answer,
    no_host_is_known,
    raw,
    refusal,
    sandbox,
    serving,
)
from tests.ports import silent_port

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
TOKEN = "shoal_tk-1_secret"


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(http_calls.HttpCalls.call.__kwdefaults__, "patience_s", 0.6)


# What every request carries


async def test_requests_say_who_asks_and_by_what() -> None:
    async with serving(sandbox()) as peer:
        transport = HttpTransport(f"{peer.url}/base/", TOKEN)
        assert await transport.ask(verbs.get, "sb-1") == await transport.ask(verbs.get, "sb-1")
        assert await transport.ask(verbs.get, "sb/../1?")
        await transport.close()
    first, second, third = peer.asked
    assert first.headers["authorization"] == f"Bearer {TOKEN}"
    assert first.headers["user-agent"].startswith("shoal/")
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", first.headers["x-request-id"])
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.path == "/base/v1/sandboxes/sb-1"
    assert third.path == "/base/v1/sandboxes/sb%2F..%2F1%3F"


# What is asked again

GONE = json.dumps(problem(Internal("the replica that had it is gone"))).encode()
"""What the gateway says of a replica that ended before it answered."""


@pytest.mark.parametrize(
    "trouble",
    [
        RESET,
        refusal(Unavailable("not now")),
        raw(b"bad gateway", 502),
        raw(GONE, 502, PROBLEM),
        raw(GONE, 504, PROBLEM),
    ],
)
async def test_what_does_no_harm_is_asked_again(trouble: bytes) -> None:
    async with serving(trouble, trouble, sandbox()) as peer:
        transport = HttpTransport(peer.url, TOKEN)
        assert (await transport.create(SPEC, deadline=5)).id == "sb-1"
        await transport.close()
    assert len(peer.asked) == 3
    assert {asked.headers["idempotency-key"] for asked in peer.asked} == {"key"}
    assert len({asked.headers["x-request-id"] for asked in peer.asked}) == 1


async def test_an_end_is_asked_for_again() -> None:
    async with serving(raw(GONE, 502, PROBLEM), sandbox()) as peer:
        transport = HttpTransport(peer.url, TOKEN)
        assert (await transport.terminate("sb-1")).id == "sb-1"
        await transport.close()
    assert [asked.method for asked in peer.asked] == ["DELETE", "DELETE"]


async def test_a_create_that_is_asked_again_has_what_is_left_of_its_deadline() -> None:
    async def slowly(asked: Asked) -> bytes:
        await asyncio.sleep(0.5)
        return RESET

    async with serving(slowly, sandbox()) as peer:
        transport = HttpTransport(peer.url, TOKEN)
        await transport.create(SPEC, deadline=50)
        await transport.close()
    deadlines = [float(asked.path.rpartition("deadline=")[2]) for asked in peer.asked]
    assert 50 >= deadlines[0] > deadlines[1] + 0.4


async def test_a_server_may_say_when_to_come_back() -> None:
    async with serving(refusal(Unavailable("rolling"), Retry_After="1"), sandbox()) as peer:
        transport = HttpTransport(peer.url, TOKEN)
        began = time.monotonic()
        await transport.ask(verbs.get, "sb-1")
        assert 1.0 <= time.monotonic() - began < 15  # a machine may stand still for seconds
        await transport.close()


async def test_patience_ends(short_patience: None) -> None:
    looks = itertools.count()
    async with serving(refusal(Unavailable("never"))) as peer:
        transport = HttpTransport(peer.url, TOKEN)
        transport.calls._clock = lambda: 0.05 * next(looks)  # on which no machine stands still
        with pytest.raises(Unavailable, match="never") as caught:
            await transport.ask(verbs.get, "sb-1")
        await transport.close()
    assert 2 <= len(peer.asked) < 20
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (refusal(Internal("a defect")), Internal),
        (refusal(PermissionDenied("no")), PermissionDenied),
        (refusal(SandboxNotFound("none")), SandboxNotFound),
        (refusal(AlreadyExists("taken")), AlreadyExists),
        (refusal(QuotaExceeded("too many"), Retry_After="7"), QuotaExceeded),
        (raw(b"<h1>Oops", 500), FailedPrecondition),
        (raw(b"not here", 404), FailedPrecondition),
        (raw(b"go there", 307, Location="https://elsewhere/"), FailedPrecondition),
        (raw(b"<html>welcome", 200), FailedPrecondition),
        (answer({"id": "sb-1"}), FailedPrecondition),
        (answer([1, 2]), FailedPrecondition),
    ],
)
async def test_what_cannot_get_better_is_asked_once(trouble: bytes, kind: type[Exception]) -> None:
    async with serving(trouble) as peer:
        transport = HttpTransport(peer.url, TOKEN)
        with pytest.raises(kind) as caught:
            await transport.ask(verbs.get, "sb-1")
        await transport.close()
    assert len(peer.asked) == 1
    assert type(caught.value) is kind
    if isinstance(caught.value, QuotaExceeded):
        assert caught.value.retry_after == 7


async def test_errors_name_their_request() -> None:
    async with serving(refusal(SandboxNotFound("none"), X_Request_Id="rq-of-the-server"), RESET) as peer:
        transport = HttpTransport(peer.url, TOKEN)
        with pytest.raises(SandboxNotFound) as refused:
            await transport.ask(verbs.get, "sb-1")
        assert refused.value.fields["request_id"] == "rq-of-the-server"
        with pytest.raises(Unavailable) as broken:
            await transport.ask(verbs.create_environment, "new", Quota())
        assert broken.value.fields["request_id"] == peer.asked[-1].headers["x-request-id"]
        await transport.close()


async def test_what_may_have_happened_is_not_done_twice() -> None:
    async with serving(RESET) as peer:
        transport = HttpTransport(peer.url, TOKEN)
        for call in (
            transport.ask(verbs.create_token, "ci", "main", Scope.RUN, None),
            transport.ask(verbs.create_environment, "new", Quota()),
            transport.ask(verbs.delete_environment, "old"),
        ):
            with pytest.raises(Unavailable) as caught:
                await call
            assert caught.value.fields["sent"]
            assert not caught.value.retryable
        await transport.close()
    # The client library itself repeats what HTTP calls idempotent, once, where a kept connection turns out to be
    # closed.
    assert [asked.method for asked in peer.asked if asked.method == "POST"] == ["POST", "POST"]


async def test_a_create_whose_answer_is_lost_is_not_called_harmless_to_repeat(short_patience: None) -> None:
    async def swallow_creates(asked: Asked) -> bytes:
        return RESET if asked.method == "POST" else answer(SELF if "/tokens/" in asked.path else {})

    async with serving(swallow_creates) as peer:
        client = Client(HttpTransport(peer.url, TOKEN))
        with pytest.raises(Unavailable) as caught:
            await Sandbox.create.aio(client=client)
        assert caught.value.fields["sent"]
        assert not caught.value.retryable
        with pytest.raises(Unavailable) as caught_many:
            await Sandbox.create_many.aio(2, client=client)
        assert caught_many.value.fields["idempotency_key"]
        await client.close.aio()
    keys = {asked.headers["idempotency-key"] for asked in peer.asked if asked.path.startswith("/v1/sandboxes?")}
    assert keys == {caught.value.fields["idempotency_key"]}


async def test_nor_are_those_of_a_later_call_that_a_large_one_is_made_of(
    short_patience: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_BATCH_BYTES", 1)  # each sandbox in a call of its own

    async def swallow_the_second(asked: Asked) -> bytes:
        if asked.method == "POST":
            key = asked.json()["sandboxes"][0]["idempotency_key"]
            return RESET if key.endswith(":1") else answer({"results": [{"sandbox": info_to_json(INFO)}]})
        return answer(SELF if "/tokens/" in asked.path else {})

    async with serving(swallow_the_second) as peer:
        client = Client(HttpTransport(peer.url, TOKEN))
        first, second, third = await Sandbox.create_many.aio(3, client=client, return_errors=True)
        assert isinstance(second, Unavailable)
        assert not second.retryable
        key = second.fields["idempotency_key"]
        assert key in second.message
        third_key = peer.asked[-1].json()["sandboxes"][0]["idempotency_key"]
        assert third_key == f"{key}:2"
        assert isinstance(first, Sandbox)
        assert isinstance(third, Sandbox)
        _, second, _ = await Sandbox.create_many.aio(3, client=client, return_errors=True, idempotency_key="mine")
        assert isinstance(second, Unavailable)
        assert second.retryable
        await client.close.aio()


async def test_what_was_never_sent_is_tried_again_whatever_it_is() -> None:
    with socket.socket() as reserved:  # nobody else gets the port
        reserved.bind(("127.0.0.1", 0))
        transport = HttpTransport(f"http://127.0.0.1:{reserved.getsockname()[1]}", TOKEN)
        creating = asyncio.create_task(transport.ask(verbs.create_token, "ci", "main", Scope.RUN, None))
        await asyncio.sleep(0.2)
        server = await asyncio.start_server(_answer_token, sock=reserved)
        info, text = await asyncio.wait_for(creating, 30)
        assert (info.id, text) == ("tk-1", "shoal_tk-1_x")
        await transport.close()
        server.close()


async def _answer_token(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(answer({**SELF, "token": "shoal_tk-1_x"}, 201))
    writer.close()


async def test_an_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_calls, "MAX_ANSWER", 1000)
    async with serving(raw(b"x" * 2000)) as peer:
        transport = HttpTransport(peer.url, TOKEN)
        with pytest.raises(Internal, match="longer than"):
            await transport.ask(verbs.get, "sb-1")
        await transport.close()


async def test_a_server_that_says_nothing_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_calls, "ANSWER_S", 0.2)

    async def never(asked: Asked) -> bytes:
        await asyncio.sleep(30)
        return RESET

    async with serving(never) as peer:
        transport = HttpTransport(peer.url, TOKEN)
        with pytest.raises(Unavailable, match="did not answer"):
            await transport.calls.json("GET", "/v1/defaults", patience_s=0.3)
        await transport.close()


# The first call


@pytest.mark.parametrize(
    ("answered", "kind", "fields"),
    [
        (refusal(Unauthenticated("the token is unknown")), Unauthenticated, {}),
        (raw(b"<html>my router", 200), FailedPrecondition, {"state": "not_shoal"}),
        (raw(b"nginx", 404), FailedPrecondition, {"state": "not_shoal"}),
        (raw(b"", 301, Location="https://127.0.0.1/"), FailedPrecondition, {"state": "not_shoal"}),
        (RESET, Unavailable, {"sent": True}),
    ],
)
async def test_the_first_mistake_is_told_at_once(
    answered: Answer, kind: type[ShoalError], fields: dict[str, Any]
) -> None:
    async with serving(answered) as peer:
        began = time.monotonic()
        with pytest.raises(kind) as caught:
            await HttpTransport.open(peer.url, TOKEN)
        assert fields.items() <= caught.value.fields.items()
        assert time.monotonic() - began < 15  # less than its patience, and more than a machine may stand still


@pytest.mark.parametrize(
    ("answered", "remedy"),
    [
        (refusal(Unauthenticated("the token is unknown")), "shoal tokens create"),
        (raw(b"", 301, Location="https://127.0.0.1/"), "https://127.0.0.1/"),
    ],
)
async def test_where_there_is_a_remedy_it_is_told(answered: Answer, remedy: str) -> None:
    async with serving(answered) as peer:
        with pytest.raises(ShoalError, match=remedy):
            await HttpTransport.open(peer.url, TOKEN)


async def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_port() as port, pytest.raises(Unavailable, match="is it up, and the port right"):
        await HttpTransport.open(f"http://127.0.0.1:{port}", TOKEN)
    no_host_is_known(monkeypatch)
    with pytest.raises(Unavailable, match="there is no host"):
        await HttpTransport.open("http://no-such-host.invalid", TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_without_file_descriptors_it_is_not_the_api_that_is_away(host: str) -> None:
    async with serving(answer(SELF)) as peer:
        url = peer.url.replace("127.0.0.1", host)
        script = [sys.executable, "-c", _WITHOUT_DESCRIPTORS, url]
        process = await asyncio.create_subprocess_exec(*script, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
    first, second = out.decode().splitlines()
    assert "no file descriptors" in first
    assert "ulimit -n" in first
    assert second == "tk-1"  # it comes back as soon as there is one


_WITHOUT_DESCRIPTORS = """
import asyncio, resource, socket, sys
from shoal.transport.http import HttpTransport
from shoal.model.errors import Unavailable

async def main():
    transport = HttpTransport(sys.argv[1], "shoal_tk-1_secret")
    await transport.calls.pools.get()
    resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))
    held = []
    try:
        while True:
            held.append(socket.socket())
    except OSError:
        pass
    try:
        await transport.whoami(patience_s=0)
    except Unavailable as error:
        print(error.message)
    asking = asyncio.create_task(transport.whoami())
    await asyncio.sleep(0)
    for each in held:
        each.close()
    print((await asking).id)
    await transport.close()

asyncio.run(main())
"""


async def test_a_missing_token_is_asked_for() -> None:
    async with serving(refusal(Unauthenticated("there is no token"))) as peer:
        with pytest.raises(Unauthenticated, match="SHOAL_TOKEN"):
            await HttpTransport.open(peer.url)
        assert "authorization" not in peer.asked[0].headers


async def test_an_api_that_is_taken_for_ray_is_told_at_once() -> None:
    from shoal.transport.ray_attach import attach

    async with serving(raw(b"welcome")) as peer:
        with pytest.raises(InvalidRequest, match=f"write {peer.url}"):
            await asyncio.to_thread(attach, peer.url.removeprefix("http://"))


@pytest.mark.parametrize("host", ["a..b", f"{'x' * 64}.example", "[::1]"])
async def test_a_host_that_cannot_be_is_none_that_answers(host: str) -> None:
    from shoal.transport.ray_attach import attach

    with pytest.raises(Unavailable, match="no Ray cluster answers") as caught:
        await asyncio.to_thread(attach, f"{host}:1")
    assert "[::1]" not in host or "Name or service" not in caught.value.message


@pytest.mark.usefixtures("short_patience")
async def test_a_pause_that_is_no_number_is_none() -> None:
    async with serving(refusal(Unavailable("starting", retry_after="soon")), sandbox()) as peer:
        transport = HttpTransport(peer.url, TOKEN)
        assert (await transport.ask(verbs.get, "sb-1")).id
        await transport.close()


async def test_an_answer_that_is_too_deep_is_no_api(short_patience: None) -> None:
    async with serving(raw(b"[" * 1_000_000, 200, "application/json")) as peer:
        transport = HttpTransport(peer.url, TOKEN)
        with pytest.raises(FailedPrecondition) as caught:
            await transport.ask(verbs.get, "sb-1")
        assert caught.value.state == "not_shoal"
        await transport.close()
