"""What a call belongs to goes along with it, and no further."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from shoal.actors import handles
from shoal.actors.handles import Carrying
from shoal.model import call_context, tasks
from shoal.model.call_context import CallContext

pytestmark = pytest.mark.anyio

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("header", "followed"),
    [
        (PARENT, True),
        ("cc" + PARENT[2:], True),
        ("ff" + PARENT[2:], False),
        (PARENT.upper(), False),
        ("00-" + "0" * 32 + PARENT[35:], False),
        (PARENT[:36] + "0" * 16 + "-01", False),
        (PARENT + "\n", False),
        (PARENT + "-more", False),
        ("", False),
        (None, False),
    ],
)
def test_only_a_good_traceparent_is_followed(header: str | None, followed: bool) -> None:
    assert call_context.parse(header) == (header if followed else "")


class Actor(Carrying):
    """An actor in this process. `seen`: what its calls belonged to."""

    def __init__(self) -> None:
        self.seen: list[CallContext] = []

    async def look(self, number: int) -> int:
        self.seen.append(call_context.now())
        return number

    async def ended(self) -> None:
        self.seen.append(call_context.now())


class Remote:
    """Calls an actor's method in a task of its own, as Ray does."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        class Method:
            @staticmethod
            def remote(*args: Any) -> asyncio.Future[Any]:
                import contextvars

                method = getattr(self._actor, name)
                return asyncio.get_running_loop().create_task(method(*args), context=contextvars.Context())

        return Method


async def test_an_actor_is_told_what_its_call_belongs_to() -> None:
    actor = Actor()
    assert await handles.call(Remote(actor), "look", 1) == 1  # type: ignore[arg-type]
    call_context.begin_request("rq-1", PARENT)
    call_context.about("sb-1")
    assert await handles.call(Remote(actor), "look", 2, timeout_s=5) == 2  # type: ignore[arg-type]
    await handles.call(Remote(actor), "ended")  # type: ignore[arg-type]
    assert actor.seen == [CallContext(), CallContext("rq-1", PARENT, "sb-1"), CallContext()]


async def test_a_loop_does_not_belong_to_the_call_that_started_it() -> None:
    call_context.begin_request("rq-1", PARENT)
    seen = []

    async def look() -> None:
        seen.append(call_context.now())

    await tasks.supervise(look, "a loop")
    await tasks.shared(look(), "a part of the call")
    assert seen == [CallContext(), CallContext("rq-1", PARENT)]


@pytest.fixture
def provider() -> Iterator[TracerProvider]:
    provider = TracerProvider()
    yield provider
    provider.shutdown()


async def test_a_span_of_this_process_goes_before_what_the_caller_told(provider: TracerProvider) -> None:
    call_context.begin_request("rq-1", PARENT)
    with provider.get_tracer("a program").start_as_current_span("work") as span:
        told = call_context.carried()
    assert told is not None
    assert told["traceparent"][36:52] == trace.format_span_id(span.get_span_context().span_id)
    assert call_context.carried() == {"request_id": "rq-1", "traceparent": PARENT}
