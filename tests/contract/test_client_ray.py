"""The transport inside a cluster, with a real Ray and a controller that does what a test tells it to."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import ray
from ray import exceptions

from shoal.model import verbs
from shoal.model.access import Caller, Scope, caller
from shoal.model.errors import AlreadyExists, FailedPrecondition, Internal, ShoalError, Unavailable
from shoal.model.info import Listing, Page, SandboxInfo
from shoal.model.spec import Resources, SandboxSpec
from shoal.model.states import State
from shoal.transport.ray import RayTransport
from shoal.transport.ray_calls import lost

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

SPEC = SandboxSpec("image", Resources(0.1, 1.0, 64, 128, 100, 10), idempotency_key="k")


class Controller:
    """Answers verbs as the real one does, and remembers what it was asked across restarts (in a directory)."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.making: SandboxSpec | None = None
        with open(os.path.join(directory, "notes"), "a"):
            pass  # there are none yet

    async def pid(self) -> int:
        return os.getpid()

    async def call(self, verb: str, arguments: tuple[Any, ...], caller: Caller) -> Any:
        self.caller = caller
        return await getattr(self, verb)(*arguments)

    async def defaults(self) -> dict[str, Any]:
        return {"image": "the/default", "only_of_a_newer_cluster": 1}

    async def create(self, spec: SandboxSpec, deadline: float, wait: bool) -> tuple[SandboxInfo, None]:
        self._note("create")
        if spec.image == "taken":
            raise AlreadyExists("name: it is taken", field="name")
        if spec.image == "slow":
            self.making = spec
            await asyncio.sleep(30.0)
        if spec.image == "busy":
            raise Unavailable("the cluster is being shut down")
        return _info("sb-new", spec), None

    async def get(self, sandbox_id: str) -> SandboxInfo:
        if sandbox_id == "sb-bug":
            raise ZeroDivisionError("a defect")
        return _info(sandbox_id, SPEC)

    async def create_many(
        self, specs: list[SandboxSpec], deadline: float, wait: bool
    ) -> list[tuple[SandboxInfo, None] | ShoalError]:
        return [
            AlreadyExists("name: it is taken", field="name") if s.image == "taken" else (_info(s.image, s), None)
            for s in specs
        ]

    async def list_sandboxes(self, listing: Listing) -> Page:
        """A page with one, one with none, and the last."""
        number = 0 if listing.before is None else int(listing.before[0])
        found = [] if number == 1 else [_info(f"sb-{number}", SPEC)]
        return Page(found[: listing.limit], (number + 1.0, "sb") if number < 2 else None)

    async def give_up(self, keys: list[tuple[str, str]]) -> list[tuple[str, str]]:
        made = [] if self.making is None else [(self.making.environment, self.making.idempotency_key or "")]
        found = [key for key in keys if key in made]
        for _, key in found:
            self._note(f"give up {key}")
        return found

    async def wait(self, sandbox_id: str, timeout: float) -> SandboxInfo:
        await asyncio.sleep(min(timeout, 0.2))
        self._note("wait")
        return _info(sandbox_id, SPEC, State.TERMINATED if self.notes().count("wait") >= 3 else State.RUNNING)

    async def events(self, *arguments: Any) -> list[Any]:
        return [*arguments]

    async def stored_token(self, token_id: str) -> str:
        return self.caller.token

    async def environment(self, name: str) -> str:
        return self.caller.token

    async def last_event(self) -> int:
        self._note("flaky")
        if self.notes().count("flaky") < 3:
            raise Unavailable("not just now")
        return self.notes().count("flaky")

    async def create_token(self, *arguments: Any) -> None:
        self._note("create_token")
        os.kill(os.getpid(), 9)

    def notes(self) -> list[str]:
        with open(os.path.join(self.directory, "notes")) as file:
            return file.read().splitlines()

    def _note(self, what: str) -> None:
        with open(os.path.join(self.directory, "notes"), "a") as file:
            file.write(what + "\n")


def _info(sandbox_id: str, spec: SandboxSpec, state: State = State.RUNNING) -> SandboxInfo:
    return SandboxInfo(sandbox_id, state, spec, 1.0)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("t" * 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))  # or it would make one in the user's home
        yield from _local_ray()


def _local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture
def controller(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    directory = str(tmp_path_factory.mktemp("controller"))
    options = {"name": "controller", "namespace": "shoal", "lifetime": "detached", "num_cpus": 0, "max_restarts": -1}
    actor = ray.remote(Controller).options(max_concurrency=100, **options).remote(directory)
    ray.get(actor.pid.remote())
    yield actor
    ray.kill(actor)


def notes(controller: Any) -> list[str]:
    found: list[str] = ray.get(controller.notes.remote())
    return found


async def test_without_a_controller_the_next_step_is_told(cluster: None) -> None:
    with pytest.raises(FailedPrecondition, match="with `shoal up`"):
        await RayTransport.open()


async def test_values_and_errors_travel(controller: Any) -> None:
    transport = await RayTransport.open()
    assert (await transport.defaults()).image == "the/default"
    assert (await transport.create(SPEC, deadline=5)).spec == SPEC
    assert [info.id for info in await transport.list(Listing())] == ["sb-0", "sb-2"]
    assert [info.id for info in await transport.list(Listing(limit=1))] == ["sb-0"]
    assert (await transport.ask(verbs.list_sandboxes, Listing())).reached == (1.0, "sb")
    assert await transport.ask(verbs.events, 1, wait_s=2.0) == [1, None, None, 2.0], "defaults are filled in"
    with pytest.raises(AlreadyExists) as caught:
        await transport.create(SandboxSpec("taken", SPEC.resources), deadline=5)
    assert type(caught.value) is AlreadyExists
    assert caught.value.fields == {"field": "name"}
    with pytest.raises(Internal, match="ZeroDivisionError"):
        await transport.ask(verbs.get, "sb-bug")
    await transport.close()


async def test_each_of_many_has_its_own_outcome(controller: Any) -> None:
    transport = await RayTransport.open()
    wanted = [replace(SPEC, image=image, idempotency_key=None) for image in ("a", "taken", "b")]
    first, second, third = await transport.create_many(wanted, deadline=5)
    assert isinstance(first, SandboxInfo)
    assert isinstance(third, SandboxInfo)
    assert (first.id, type(second), third.id) == ("a", AlreadyExists, "b")
    assert first.spec.idempotency_key != third.spec.idempotency_key is not None, "a lost call can be sent again"
    await transport.close()


async def test_the_controller_is_told_on_whose_behalf(controller: Any) -> None:
    transport = await RayTransport.open()
    assert str(await transport.ask(verbs.environment, "dev")) == "cluster"
    token = caller.set(Caller("tk-1", "dev"))
    try:
        assert str(await transport.ask(verbs.environment, "dev")) == "tk-1"
        assert str(await transport.ask(verbs.stored_token, "tk-2")) == "cluster", "which replicas ask for themselves"
    finally:
        caller.reset(token)
    await transport.close()


async def test_what_may_have_been_done_and_is_not_the_same_twice_is_not_sent_again(controller: Any) -> None:
    transport = await RayTransport.open()
    with pytest.raises(Unavailable) as caught:
        await transport.ask(verbs.create_token, "ci", "main", Scope.RUN, None)
    assert caught.value.fields["sent"]
    assert not caught.value.retryable
    assert (await transport.ask(verbs.get, "sb-1")).id == "sb-1", "it is back, and can be asked for its notes"
    assert notes(controller).count("create_token") == 1
    await transport.close()


async def test_a_wait_is_made_of_short_ones(controller: Any) -> None:
    transport = await RayTransport.open()
    assert not (await transport.wait("sb-1", 0.1)).ended
    assert (await transport.wait("sb-1", None)).ended
    assert notes(controller).count("wait") == 3
    await transport.close()


async def test_a_killed_controller_is_waited_for(controller: Any) -> None:
    transport = await RayTransport.open()
    os.kill(ray.get(controller.pid.remote()), 9)
    began = time.monotonic()
    assert (await transport.create(SPEC, deadline=5)).id == "sb-new"
    assert (await transport.ask(verbs.get, "sb-1")).id == "sb-1"
    assert time.monotonic() - began < 20
    await transport.close()


async def test_what_the_controller_cannot_do_just_now_is_asked_again_but_for_creates(controller: Any) -> None:
    transport = await RayTransport.open()
    assert await transport.ask(verbs.last_event) == 3
    with pytest.raises(Unavailable, match="shut down"):
        await transport.create(SandboxSpec("busy", SPEC.resources), deadline=5)
    assert notes(controller).count("create") == 1
    await transport.close()


async def test_a_create_that_was_given_up_is_undone_before_its_caller_goes_on(controller: Any) -> None:
    transport = await RayTransport.open()
    creating = asyncio.create_task(transport.create(replace(SPEC, image="slow"), deadline=60))
    while await controller.notes.remote() != ["create"]:  # noqa: ASYNC110  # it tells nobody
        await asyncio.sleep(0.01)
    began = time.monotonic()
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert notes(controller) == ["create", "give up k"]
    assert time.monotonic() - began < 20  # and not the 30 that it would have taken
    await transport.close()


async def test_a_connection_without_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(FailedPrecondition) as caught:
        await RayTransport.open()
    assert caught.value.state == "no_cluster"


@pytest.mark.parametrize(
    "error", [exceptions.ActorDiedError(), exceptions.RaySystemError("the GCS is away")], ids=lambda e: type(e).__name__
)
def test_of_a_create_whose_answer_is_lost_it_is_told_that_it_may_have_happened(error: exceptions.RayError) -> None:
    assert lost(error, verbs.create).fields["sent"]
    assert lost(error, verbs.create_many).fields["sent"]
    assert lost(error, verbs.create).retryable
    assert "sent" not in lost(error, verbs.get).fields
