"""Sandboxes: isolated containers in which untrusted code runs."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Unpack

from shoal.client.arguments import environment_of, states_of
from shoal.client.checkpoint import Checkpoint
from shoal.client.cluster import Client, current
from shoal.client.create import Wanted, create_all, create_many_call, named, spec_for, specs_of
from shoal.client.create_options import SandboxOptions, spell_out_options
from shoal.client.dual_method import dual_function, dual_method
from shoal.client.files import FileSystem
from shoal.client.html import Listed, card, text
from shoal.client.image.dev import reference_of
from shoal.client.image.image import Image
from shoal.client.reset import reset
from shoal.client.retrying_agent import RetryingAgent
from shoal.client.sandbox_processes import SandboxProcesses
from shoal.client.sandbox_tunnels import SandboxTunnels
from shoal.model import verbs
from shoal.model.errors import (
    DeadlineExceeded,
    ImageNotFound,
    InvalidRequest,
    SandboxEnded,
    ShoalError,
    Unavailable,
)
from shoal.model.ids import SANDBOX
from shoal.model.images import ImageKind, check_ttl, image_name
from shoal.model.info import Listing, SandboxInfo
from shoal.model.mounts import check_mount_path
from shoal.model.options import mapping
from shoal.model.sorting import NEWEST, check_sort, cursor_at
from shoal.model.states import State
from shoal.model.validate import MAX_TIMEOUT, check_absolute, check_name, check_number, check_tags, check_text

if TYPE_CHECKING:
    from shoal.client.image.image import Image
    from shoal.model.usage import SandboxUsage

CREATE_DEADLINE_S = 300.0
MAX_FORKS = 1000
_COLUMNS = "id name _info.state _info.spec.image _info.tags _info.created_at"


class Sandbox(SandboxProcesses, SandboxTunnels):
    """One sandbox, from its creation to its end. `Sandbox.create` makes one; it ends by itself after its `timeout`.

    Every method blocks; its `.aio` form is awaited instead. Leaving its `with` block terminates the sandbox, or
    stops it if it is persistent.
    """

    def __init__(self, client: Client, info: SandboxInfo) -> None:
        # For `create`, `from_id` and their like.
        super().__init__(RetryingAgent(client.transport, info.id), info)
        self._client = client
        self.files = FileSystem(self._agent)
        """Its files."""

    # Making and finding

    @dual_function
    @staticmethod
    @spell_out_options
    async def create(
        *command: str,
        deadline: float = CREATE_DEADLINE_S,
        client: Client | None = None,
        **options: Unpack[SandboxOptions],
    ) -> Sandbox:
        """Creates a sandbox and returns it running.

        `command`: its own command, at whose end it ends; without one it lives until its `timeout` or `terminate`.
        `env`, `workdir` and `user` are the defaults of all its processes. CPU is in cores, memory and disk in MiB,
        times in seconds. `cpu` and `memory` are what it is sure of, or (request, limit). `deadline`: seconds for the
        create itself. What is not given, or None, is the cluster's default.

        Raises `InvalidRequest` (with the `field` at fault), `ImageNotFound`, `AlreadyExists` (name), `CommandNotFound`,
        `QuotaExceeded`, `DeadlineExceeded`, `Unavailable`; then nothing is left. If the answer was lost, the sandbox
        may exist: the `Unavailable` is not retryable; repeat the call with the `idempotency_key` in its fields. With a
        key of your own, just repeat the call.
        """
        check_number("deadline", deadline, 0, math.inf, "seconds")
        if "command" in options:
            raise InvalidRequest(
                'command: give its words as arguments: Sandbox.create("sleep", "60", image=…)', field="command"
            )
        client = client or await current()
        # With a key, the transport may repeat a create that a restart of the controller interrupted.
        given = options.get("idempotency_key")
        key = secrets.token_hex(16) if given is None else given
        spec = await spec_for(client, {**options, "command": command, "idempotency_key": key})
        from shoal.model.spec_model import check_spec  # only now, for it loads pydantic

        check_spec(spec, None)
        try:
            made = await client.transport.create(spec, deadline=deadline)
        except Unavailable as error:
            raise named(error, key if given is None else None) from None
        except ImageNotFound:
            image = options.get("image")
            if not isinstance(image, Image) or not image.forget(client, spec.environment):
                raise
            # It was deleted since it was built. Nothing was created.
            return await Sandbox.create.aio(*command, deadline=deadline, client=client, **options)
        client.leases.add(made)
        return Sandbox(client, made)

    @create_many_call
    @dual_function
    @staticmethod
    async def create_many(
        wanted: Wanted,
        *,
        return_errors: bool = False,
        deadline: float = CREATE_DEADLINE_S,
        client: Client | None = None,
        **options: Any,
    ) -> Sequence[Sandbox | ShoalError]:
        """Creates many sandboxes in one call and returns them running, in the order of `wanted`.

        `wanted`: how many, or a list of dicts with the arguments of each sandbox. `options`: arguments of `create` for
        all of them, with `command` as a list. `deadline`: seconds for all together. With an `idempotency_key`, sandbox
        i, counted from 0, gets `<key>:<i>`.

        All or none: if one create fails, the others are ended and its error is raised. With `return_errors`, the
        others stay, and the list holds the error of each one that failed. If an answer was lost, see `create`.
        """
        check_number("deadline", deadline, 0, math.inf, "seconds")
        client = client or await current()
        given = options.get("idempotency_key")
        key = secrets.token_hex(16) if given is None else given
        specs = await specs_of(client, wanted, options, key)
        made = await create_all(
            client, specs, key=key if given is None else None, deadline=deadline, or_none=not return_errors
        )
        for each in made:
            if isinstance(each, SandboxInfo):
                client.leases.add(each)
        return Listed((each if isinstance(each, ShoalError) else Sandbox(client, each) for each in made), _COLUMNS)

    @dual_function
    @staticmethod
    async def from_id(sandbox_id: str, *, client: Client | None = None) -> Sandbox:
        """The sandbox with this id, living or ended; `SandboxNotFound` if it never existed."""
        if not SANDBOX.fullmatch(str(sandbox_id)):
            raise InvalidRequest(
                f"sandbox_id: {sandbox_id!r:.80} is not a sandbox id, which looks like 'sb-…'", field="sandbox_id"
            )
        client = client or await current()
        return Sandbox(client, await client.transport.ask(verbs.get, sandbox_id))

    @dual_function
    @staticmethod
    async def from_name(name: str, *, environment: str | None = None, client: Client | None = None) -> Sandbox:
        """The living sandbox with this name, else the last that had it; `SandboxNotFound`."""
        check_name("name", name)
        client = client or await current()
        return Sandbox(client, await client.transport.ask(verbs.find, name, await environment_of(client, environment)))

    @dual_function
    @staticmethod
    async def list(
        *,
        tags: Mapping[str, str] | None = None,
        states: Sequence[State | str] = (),
        region: str | None = None,
        environment: str | None = None,
        include_ended: bool = False,
        sort: str = NEWEST,
        limit: int = 1000,
        after: Sandbox | None = None,
        client: Client | None = None,
    ) -> Sequence[Sandbox]:
        """The sandboxes with all of `tags`, newest first: living ones, or those in any of `states`; in one `region`.

        `include_ended`: also ended ones. `sort`: `created`, `name`, `state`, `image`, `region`, `cpu` or `memory`, with
        a `-` before it backwards; then, of ended ones, the newest `limits.history`. `limit`: at most this many.
        `after`: the last sandbox of the previous page.
        """
        wanted = mapping("tags", tags)
        check_tags("tags", wanted)
        check_number("limit", limit, 0, math.inf, "sandboxes", whole=True)
        if region is not None:
            check_text("region", region, "a region's name")
        check_sort(sort)
        client = client or await current()
        listing = Listing(
            await environment_of(client, environment),
            wanted,
            states_of(states),
            include_ended=include_ended,
            limit=limit,
            region=region,
            before=None if after is None else cursor_at(after._info, sort),
            sort=sort,
        )
        return Listed((Sandbox(client, info) for info in await client.transport.list(listing)), _COLUMNS)

    # What it is

    @property
    def id(self) -> str:
        """`sb-…`"""
        return self._info.id

    @property
    def name(self) -> str | None:
        """Its name, if it has one."""
        return self._info.spec.name

    @property
    def tags(self) -> Mapping[str, str]:
        """Its tags as last seen."""
        return dict(self._info.tags)

    @property
    def returncode(self) -> int | None:
        """Its exit code as of the last `wait`, `poll` or `info`; None while it lives. See `poll`."""
        return self._info.returncode if self._info.ended else None

    @dual_method
    async def info(self) -> SandboxInfo:
        """Its current state; after its end, the reason and the exit code."""
        if not self._info.ended:
            self._info = await self._agent.transport.ask(verbs.get, self.id)
        return self._info

    @dual_method
    async def usage(self, *, since: float | None = None) -> SandboxUsage:
        """What it uses now, and used in the last hour in points of ten seconds (`since`: only those after that time,
        unix seconds). Its node keeps that for an hour after its end."""
        return await self._agent.transport.ask(verbs.sandbox_usage, self.id, since)

    @dual_method
    async def set_tags(self, tags: Mapping[str, str]) -> None:
        """Replaces its tags."""
        wanted = mapping("tags", tags)
        check_tags("tags", wanted)
        self._info = await self._agent.transport.ask(verbs.set_tags, self.id, wanted)

    @dual_method
    async def reset(self, *directories: str) -> None:
        """Kills all processes in it, and empties these directories. All else stays as it is.

        `FailedPrecondition` if it has a command of its own that runs, `DeadlineExceeded` after 30 s.
        """
        await reset(self._agent, directories)

    # Its end

    @dual_method
    async def wait(self, timeout: float | None = None) -> int:
        """Waits for its end and returns its exit code. See `poll`. A persistent one ends only by `terminate`.

        Raises `DeadlineExceeded` after `timeout` seconds; the sandbox goes on.
        """
        if timeout is not None:
            check_number("timeout", timeout, -1, MAX_TIMEOUT, "seconds")
        if not self._info.ended:
            self._info = await self._agent.transport.wait(self.id, timeout)
            if not self._info.ended:
                raise DeadlineExceeded(f"sandbox {self.id} still runs after {timeout:g} s")
        assert self._info.returncode is not None  # it has ended
        return self._info.returncode

    @dual_method
    async def poll(self) -> int | None:
        """None while it lives, stopped or not; then its exit code, always a number.

        That of its own command, `-n` if signal *n* ended it. Without one the number of its reason: 124 after its
        `timeout` or `idle_timeout`, 125 if it could not start, else 137. `info().reason` is the reason itself.
        """
        await self.info.aio()
        return self.returncode

    @dual_method
    async def terminate(self) -> None:
        """Ends it and returns once its processes are gone. Does nothing if it has ended."""
        if not self._info.ended:
            self._info = await self._agent.transport.terminate(self.id)

    @dual_method
    async def stop(self) -> None:
        """Stops a persistent sandbox and returns once nothing of it runs; its disk, name, tags and tunnels stay. Does
        nothing if it is stopped; one that is suspended loses its memory.

        Raises `SandboxEnded`, and `FailedPrecondition` if it was not created with `persistent=True`.
        """
        self._info = await self._agent.transport.stop(self.id)

    @dual_method
    async def start(self, *, deadline: float = CREATE_DEADLINE_S) -> None:
        """Starts a persistent sandbox that is stopped, with its own command, and returns once it runs. Does nothing if
        it runs. `deadline`: seconds for that.

        Raises `SandboxEnded`, `QuotaExceeded`, `DeadlineExceeded`, and `FailedPrecondition` if it was not created with
        `persistent=True`, or its machine is not part of the cluster now; it stays stopped then.
        """
        check_number("deadline", deadline, 0, math.inf, "seconds")
        self._info = await self._agent.transport.ask(verbs.start, self.id, deadline)

    @dual_method
    async def suspend(self) -> None:
        """Stops a persistent sandbox in gVisor and keeps its memory, too: `resume`, `start`, a request to a tunnel, and
        whatever is asked of it has it go on where it was, within about a second. What `info().not_kept` names is lost.
        It uses no CPU and no memory meanwhile. Does nothing if it is suspended.

        Raises `SandboxEnded`, and `FailedPrecondition` if it was not created with `persistent=True` and
        `runtime="runsc"`, does not run, or its memory could not be saved; it runs on then.
        """
        self._info = await self._agent.transport.suspend(self.id)

    @dual_method
    async def pause(self) -> None:
        """Freezes all its processes where they are: they use no CPU and keep their memory. Until `resume`, calls to it
        raise `FailedPrecondition` with `state="paused"`, those that wait already too; what they started is not lost.
        Its `timeout` goes on. Does nothing if it is paused.

        Raises `SandboxEnded`, `FailedPrecondition` where it does not run.
        """
        self._info = await self._agent.transport.ask(verbs.pause, self.id)

    @dual_method
    async def resume(self) -> None:
        """Lets a paused or suspended sandbox go on. Does nothing if it runs. Raises `SandboxEnded`,
        `FailedPrecondition`, and for a suspended one what `start` raises."""
        self._info = await self._agent.transport.ask(verbs.resume, self.id)

    @dual_method
    async def _leave(self) -> None:
        if not self._info.spec.persistent:
            await self.terminate.aio()
        elif not self._info.ended:
            with suppress(SandboxEnded):
                await self.stop.aio()

    # Its files as an image

    @dual_method
    async def snapshot_filesystem(self, name: str | None = None, *, ttl: float | None = None) -> Image:
        """An image of its files as they are at one moment, in which its processes are frozen; they go on after it. Only
        what changed is stored, and `Sandbox.create(image=…)` takes it at once.

        `name`: `name:tag`, for `Image.from_name`; another image that has it loses it. `ttl`: seconds after which it is
        deleted. Without either it stays until it was not used for `limits.unused_images` (30 days). It has no processes
        and no memory. A persistent sandbox may also be stopped.

        Raises `InvalidRequest`, `SandboxEnded`, `FailedPrecondition` before it runs, `QuotaExceeded`.
        """
        return await self._snapshot_of(None, name, ttl)

    @dual_method
    async def snapshot_directory(self, path: str, name: str | None = None, *, ttl: float | None = None) -> Image:
        """An image of one directory, which is the root of the image, for `mount_image` in others; only while it runs.
        What is mounted below the directory is not in it. `name`, `ttl`: as for `snapshot_filesystem`.

        Raises what that does, and `PathNotFound`, `NotADirectory`.
        """
        check_text("path", path, "the absolute path of a directory")
        check_absolute("path", path)
        return await self._snapshot_of(path, name, ttl)

    async def _snapshot_of(self, path: str | None, name: str | None, ttl: float | None) -> Image:
        wanted = None if name is None else image_name(name)
        check_ttl(ttl)
        key = secrets.token_hex(16)  # asked again, the transport gets the same image
        made = await self._agent.transport.ask(verbs.snapshot_filesystem, self.id, wanted, ttl, key, path)
        from shoal.client.image.image import Image

        return Image.from_id(made.id)

    @dual_method
    async def mount_image(self, path: str, image: Image | str) -> None:
        """Has the sandbox, which runs, see the files of an image at `path`: of a directory's snapshot, or any other.
        The directory is made where it is missing. It may write there: that is its own, counts for its disk and goes
        with it, and is in no snapshot of its filesystem (`snapshot_directory` takes it). A persistent one has it again
        after a stop. `info().mounted_images` tells what is mounted.

        Raises `InvalidRequest`, `AlreadyExists` where something else is mounted there, below or above (all: field
        `path`), `ImageNotFound`, `SandboxEnded`, `QuotaExceeded`, `FailedPrecondition` where it does not run, or cannot
        in gVisor and with the engine `docker` (`state="no_mounts"`).
        """
        check_mount_path("path", path)
        reference = await reference_of(image, self._client, self._info.spec.environment)
        self._info = await self._agent.transport.ask(verbs.mount_image, self.id, str(reference), path)

    @dual_method
    async def unmount_image(self, path: str) -> None:
        """Takes an image away that was mounted at `path`, with what was written there. Does nothing where none is.

        Raises `InvalidRequest`, `SandboxEnded`, `FailedPrecondition` where it does not run.
        """
        check_mount_path("path", path)
        self._info = await self._agent.transport.ask(verbs.unmount_image, self.id, path)

    @dual_method
    async def snapshot(self, *, ttl: float | None = None) -> Checkpoint:
        """Its files and its memory of one moment, for `Sandbox.restore`; only in gVisor (`runtime="runsc"`). It stands
        still meanwhile, and goes on; its connections to outside are cut. `ttl`: as for `snapshot_filesystem`.

        Raises `SandboxEnded`, `QuotaExceeded`, `FailedPrecondition` before it runs, and for another runtime.
        """
        check_ttl(ttl)
        made = await self._agent.transport.ask(verbs.checkpoint, self.id, ttl, secrets.token_hex(16))
        return Checkpoint(made.id, _taken=True)

    @dual_function
    @staticmethod
    async def restore(
        checkpoint: Checkpoint,
        *,
        deadline: float = CREATE_DEADLINE_S,
        client: Client | None = None,
        **options: Unpack[SandboxOptions],
    ) -> Sandbox:
        """Creates a sandbox that goes on where the one of the checkpoint was, with its processes, and returns it
        running; as often as you like. `options`: as for `create`; environment, working directory and user are those of
        new processes. It runs on the machine that has the checkpoint. Raises what `create` does."""
        given: Any = checkpoint
        if not isinstance(given, Checkpoint):
            raise InvalidRequest(
                f"checkpoint: {given!r:.80} is none; give what `snapshot` returned, or Checkpoint('im-…')",
                field="checkpoint",
            )
        client = client or await current()
        if not checkpoint._taken and (await client.image.aio(checkpoint.id)).kind is not ImageKind.CHECKPOINT:
            raise InvalidRequest(
                f"checkpoint: {checkpoint.id} has no memory, only files; use Sandbox.create(image={checkpoint.id!r})",
                field="checkpoint",
            )
        restored: SandboxOptions = {**options, "image": checkpoint.id, "runtime": "runsc"}
        return await Sandbox.create.aio(deadline=deadline, client=client, **restored)

    @dual_method
    async def fork(
        self, count: int = 1, *, memory: bool = False, deadline: float = CREATE_DEADLINE_S
    ) -> Sequence[Sandbox]:
        """Creates `count` sandboxes like this one (up to 1,000), each with the files that this one has now, and returns
        them running: all, or none. Their spec is the same but for the name. Processes, memory and tunnels are not taken
        along; its own command starts anew in each. `memory`: in gVisor, each goes on with its processes and their
        memory, as after `restore`, and has no own command. `deadline`: seconds for all of it.

        Raises what `snapshot_filesystem`, with `memory` `snapshot`, and `create` do; then nothing is left.
        """
        check_number("count", count, 0, MAX_FORKS, "sandboxes", whole=True)
        check_number("deadline", deadline, 0, math.inf, "seconds")
        key = secrets.token_hex(16)
        transport = self._agent.transport
        try:
            made = await transport.fork(self.id, count, deadline=deadline, key=key, memory=memory)
        except asyncio.CancelledError:
            await self._client.rollback.run(self._end_forks(count, deadline, key, memory))
            raise
        for info in made:
            self._client.leases.add(info)
        return Listed((Sandbox(self._client, info) for info in made), _COLUMNS)

    async def _end_forks(self, count: int, deadline: float, key: str, memory: bool) -> None:
        """Ends what a call that was given up has made, or is making: the same key gives the same sandboxes."""
        transport = self._agent.transport
        made = await transport.fork(self.id, count, deadline=deadline, key=key, memory=memory)
        await asyncio.gather(*(transport.terminate(info.id) for info in made), return_exceptions=True)

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<Sandbox {self.id}{name}, {self._info.state.value}>"

    def _repr_html_(self) -> str:
        info = self._info
        facts = {"name": self.name, "image": info.spec.image, "why": info.reason, "exit code": self.returncode}
        heading = f"<b>Sandbox</b> <code>{text(self.id)}</code> {text(info.state)}"
        return card(heading, {**facts, "tags": self.tags or None})
