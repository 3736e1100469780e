"""Sandboxes: isolated containers in which untrusted code runs."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Unpack

from shoal.client.arguments import argv_of, environment_of, states_of
from shoal.client.checkpoint import Checkpoint
from shoal.client.cluster import Client, current
from shoal.client.contexts import Context
from shoal.client.create import Wanted, create_all, create_many_call, named, spec_for, specs_of
from shoal.client.create_options import SandboxOptions, spell_out_options
from shoal.client.dual_method import dual_function, dual_method
from shoal.client.files import FileSystem
from shoal.client.image.image import Image
from shoal.client.output import Output
from shoal.client.overloads import exec_call, run_call
from shoal.client.process import Process, ProcessInfo, Result, start_of
from shoal.client.reset import reset
from shoal.client.retrying_agent import RetryingAgent
from shoal.client.stdin import Input
from shoal.client.tunnels import Forward, check_port
from shoal.model import verbs
from shoal.model.access import Tunnel
from shoal.model.errors import (
    CommandFailed,
    DeadlineExceeded,
    FailedPrecondition,
    ImageNotFound,
    InvalidRequest,
    SandboxEnded,
    ShoalError,
    Unavailable,
)
from shoal.model.ids import MAIN_PROCESS, SANDBOX, new_process_id
from shoal.model.images import check_ttl, image_name
from shoal.model.info import Listing, SandboxInfo
from shoal.model.options import mapping
from shoal.model.states import State
from shoal.model.validate import MAX_TIMEOUT, check_name, check_number, check_tags, check_text

if TYPE_CHECKING:
    from shoal.client.image.image import Image
    from shoal.model.usage import SandboxUsage
    from shoal.wire.agent import RunResult, Terminal

MAX_OUTPUT = 8 << 20
"""Bytes of stdout, and of stderr, that `run` keeps by default."""

CREATE_DEADLINE_S = 300.0
MAX_FORKS = 1000
_TAIL = 2000


class Sandbox(Context):
    """One sandbox, from its creation to its end. `Sandbox.create` makes one; it ends by itself after its `timeout`.

    Every method blocks; its `.aio` form is awaited instead. Leaving its `with` block terminates the sandbox, or
    stops it if it is persistent.
    """

    def __init__(self, client: Client, info: SandboxInfo) -> None:
        # For `create`, `from_id` and their like.
        self._client = client
        self._info = info
        self._agent = RetryingAgent(client.transport, info.id)
        self._main: Process[str] | None = None
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
        return [each if isinstance(each, ShoalError) else Sandbox(client, each) for each in made]

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
        limit: int = 1000,
        after: Sandbox | None = None,
        client: Client | None = None,
    ) -> Sequence[Sandbox]:
        """The sandboxes with all of `tags`, newest first: living ones, or those in any of `states`; in one `region`.

        `include_ended`: also ended ones. `limit`: at most this many. `after`: the last sandbox of the previous page.
        """
        wanted = mapping("tags", tags)
        check_tags("tags", wanted)
        check_number("limit", limit, 0, math.inf, "sandboxes", whole=True)
        if region is not None:
            check_text("region", region, "a region's name")
        client = client or await current()
        listing = Listing(
            await environment_of(client, environment),
            wanted,
            states_of(states),
            include_ended=include_ended,
            limit=limit,
            region=region,
            before=None if after is None else (after._info.created_at, after.id),
        )
        return [Sandbox(client, info) for info in await client.transport.list(listing)]

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
        nothing if it is stopped.

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
        wanted = None if name is None else image_name(name)
        check_ttl(ttl)
        key = secrets.token_hex(16)  # asked again, the transport gets the same image
        made = await self._agent.transport.ask(verbs.snapshot_filesystem, self.id, wanted, ttl, key)
        from shoal.client.image.image import Image

        return Image.from_id(made.id)

    @dual_method
    async def snapshot(self, *, ttl: float | None = None) -> Checkpoint:
        """Its files and its memory of one moment, for `Sandbox.restore`; only in gVisor (`runtime="runsc"`). It stands
        still meanwhile, and goes on; its connections to outside are cut. `ttl`: as for `snapshot_filesystem`.

        Raises `SandboxEnded`, `QuotaExceeded`, `FailedPrecondition` before it runs, and for another runtime.
        """
        check_ttl(ttl)
        made = await self._agent.transport.ask(verbs.checkpoint, self.id, ttl, secrets.token_hex(16))
        return Checkpoint(made.id)

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
        restored: SandboxOptions = {**options, "image": checkpoint.id, "runtime": "runsc"}
        return await Sandbox.create.aio(deadline=deadline, client=client, **restored)

    @dual_method
    async def fork(self, count: int = 1, *, deadline: float = CREATE_DEADLINE_S) -> Sequence[Sandbox]:
        """Creates `count` sandboxes like this one (up to 1,000), each with the files that this one has now, and returns
        them running: all, or none. Their spec is the same but for the name. Processes, memory and tunnels are not taken
        along; its own command starts anew in each. `deadline`: seconds for all of it.

        Raises what `snapshot_filesystem` and `create` do; then nothing is left.
        """
        check_number("count", count, 0, MAX_FORKS, "sandboxes", whole=True)
        check_number("deadline", deadline, 0, math.inf, "seconds")
        key = secrets.token_hex(16)
        transport = self._agent.transport
        try:
            made = await transport.fork(self.id, count, deadline=deadline, key=key)
        except asyncio.CancelledError:
            await self._client.rollback.run(self._end_forks(count, deadline, key))
            raise
        for info in made:
            self._client.leases.add(info)
        return [Sandbox(self._client, info) for info in made]

    async def _end_forks(self, count: int, deadline: float, key: str) -> None:
        """Ends what a call that was given up has made, or is making: the same key gives the same sandboxes."""
        transport = self._agent.transport
        made = await transport.fork(self.id, count, deadline=deadline, key=key)
        await asyncio.gather(*(transport.terminate(info.id) for info in made), return_exceptions=True)

    # Its processes

    @run_call
    @dual_method
    async def run(
        self,
        *command: str | Sequence[str],
        input: str | bytes | None = None,
        timeout: float | None = None,
        check: bool = False,
        max_output: int = MAX_OUTPUT,
        env: Mapping[str, str | None] | None = None,
        workdir: str | os.PathLike[str] | None = None,
        user: str | None = None,
        text: bool = True,
        merge_stderr: bool = False,
    ) -> Result[Any]:
        """Runs a command to its end and returns its `Result`: one round trip.

        `command`: one string is a line for `/bin/sh -c`; a list, or several strings, are the program and its arguments.
        `input`: its standard input; default empty. `timeout`
        in seconds: after it the whole process tree is killed, `timed_out` is True and `returncode` -9. `max_output`:
        bytes kept of stdout and of stderr (up to 256 MiB); if there is more, it is dropped and `truncated` is True.
        `env` is added to the sandbox's own; None removes a variable. `text` False: bytes. `merge_stderr`: sends stderr
        to `stdout`. `check`: raises `CommandFailed` if `returncode` is not 0, `DeadlineExceeded` after a timeout.

        Raises `CommandNotFound`, `CommandNotExecutable`, `UserNotFound`, `InvalidRequest`, `SandboxEnded`,
        `Unavailable`.
        """
        argv = argv_of(command)
        data = input.encode("utf-8", "surrogateescape") if isinstance(input, str) else input
        start = start_of(new_process_id(), argv, env, workdir, user, timeout)
        ran = await self._agent.call(
            lambda agent: agent.run(start, input=data, max_output=max_output, merge_stderr=merge_stderr)
        )
        if check and (ran.timed_out or ran.exit != 0):
            raise _failure(argv, ran, timeout)
        return _result(ran, text)

    @exec_call
    @dual_method
    async def exec(
        self,
        *command: str | Sequence[str],
        env: Mapping[str, str | None] | None = None,
        workdir: str | os.PathLike[str] | None = None,
        user: str | None = None,
        timeout: float | None = None,
        pty: bool | tuple[int, int] = False,
        echo: bool = True,
        term: str | None = None,
        text: bool = True,
        merge_stderr: bool = False,
    ) -> Process[Any]:
        """Starts a process and returns it running.

        `command`, `env`, `workdir`, `user`, `timeout`, `text` and `merge_stderr` are as in `run`. `pty`: a terminal,
        True or (rows, columns); all its output is then in `stdout`. `echo` False: the terminal does not repeat its
        input in the output. `term`: the terminal's kind, the variable TERM; by default the sandbox's own, else `xterm`.

        Raises `CommandNotFound`, `CommandNotExecutable`, `UserNotFound`, `InvalidRequest`, `SandboxEnded`,
        `Unavailable`.
        """
        terminal = _terminal(pty, echo, term)
        start = start_of(new_process_id(), argv_of(command), env, workdir, user, timeout)
        pid = await self._agent.call(lambda agent: agent.exec(start, pty=terminal, merge_stderr=merge_stderr))
        return Process(self._agent, start.id, text=text, new=True, pid=pid)

    def process(self, process_id: str, *, text: bool = True) -> Process[Any]:
        """The process with this id, with its output from the start. Its first use may raise `ProcessNotFound`."""
        return Process(self._agent, process_id, text=text, new=False)

    @dual_method
    async def processes(self) -> Sequence[ProcessInfo]:
        """The processes that run, and the last ones that ended."""
        rows = await self._agent.call(lambda agent: agent.ps())
        return [
            ProcessInfo(r["id"], r["pid"], tuple(r["argv"]), r["started_ms"] / 1000, r["running"], r["exit"])
            for r in rows
        ]

    # Its ports

    @dual_method
    async def expose(self, port: int, *, protocol: Literal["http", "tcp"] = "http", public: bool = False) -> Tunnel:
        """Opens a tunnel to a port: a URL (`http`, with WebSockets) or an address (`tcp`). It needs no network.

        A private tunnel has a connect token. `tunnel.link` is its URL for a browser; programs send the header
        `X-Shoal-Connect-Token`, or over `tcp` the token and a newline first. A `public` tunnel is open to everybody.
        Repeated calls return the same tunnel with a fresh token, changed if the arguments differ. Raises
        `FailedPrecondition` before the sandbox runs, `SandboxEnded`.
        """
        check_port(port)
        return await self._agent.transport.ask(verbs.expose, self.id, port, protocol, public)

    @dual_method
    async def unexpose(self, port: int) -> None:
        """Closes the tunnel to a port. Does nothing if the port has none."""
        check_port(port)
        await self._agent.transport.ask(verbs.unexpose, self.id, port)

    @dual_method
    async def tunnels(self) -> Sequence[Tunnel]:
        """Its tunnels by port, without tokens."""
        return await self._agent.transport.ask(verbs.tunnels, self.id)

    @dual_method
    async def connect_token(self, port: int, expires_in: float = 3600) -> Tunnel:
        """The tunnel with a new connect token, valid for `expires_in` seconds (at most 7 days); `TunnelNotFound`."""
        check_port(port)
        check_number("expires_in", expires_in, 0, math.inf, "seconds")
        return await self._agent.transport.ask(verbs.tunnel_token, self.id, port, expires_in)

    @dual_method
    async def forward(self, port: int, local_port: int = 0, host: str = "127.0.0.1") -> Forward:
        """Forwards a local port to a port in the sandbox, exposed or not, until it is closed; a context manager.

        `local_port` 0: any free port; `Forward.address` is the result. Whoever can reach `host` can reach the port. The
        sandbox needs no network.
        """
        forward = Forward(self._agent, port, host, local_port)
        await forward.start.aio()
        return forward

    # Its own command

    @property
    def stdout(self) -> Output[str]:
        """Its own command's stdout from the start; after the sandbox's end, what was kept of it."""
        return self._own_command().stdout

    @property
    def stderr(self) -> Output[str]:
        """Like `stdout`, for stderr."""
        return self._own_command().stderr

    @property
    def stdin(self) -> Input:
        """The standard input of its own command."""
        return self._own_command().stdin

    def _own_command(self) -> Process[str]:
        if not self._info.spec.command:
            raise FailedPrecondition(
                "this sandbox has no command of its own; `exec` and `run` start processes in it",
                state=self._info.state.value,
            )
        if self._main is None:
            self._main = Process(self._agent, MAIN_PROCESS, text=True, new=False)
        return self._main

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<Sandbox {self.id}{name}, {self._info.state.value}>"


def _result(ran: RunResult, text: bool) -> Result[Any]:
    stdout: str | bytes = ran.stdout
    stderr: str | bytes = ran.stderr
    if text:
        stdout, stderr = ran.stdout.decode("utf-8", "replace"), ran.stderr.decode("utf-8", "replace")
    return Result(ran.exit, stdout, stderr, ran.duration_s, ran.timed_out, ran.truncated)


def _failure(argv: Sequence[str], ran: RunResult, timeout: float | None) -> ShoalError:
    stdout, stderr = (data[-_TAIL:].decode("utf-8", "replace") for data in (ran.stdout, ran.stderr))
    command = " ".join(argv)
    command = command if len(command) <= 80 else command[:77] + "..."
    if ran.timed_out:
        return DeadlineExceeded(f"{command!r} was killed after {timeout:g} s", stdout=stdout, stderr=stderr)
    last = stderr.strip().rpartition("\n")[2][:200]
    return CommandFailed(
        f"{command!r} exited with {ran.exit}{': ' + last if last else ''}",
        returncode=ran.exit,
        stdout=stdout,
        stderr=stderr,
    )


def _terminal(pty: bool | tuple[int, int], echo: bool, term: str | None) -> Terminal | None:
    if pty is False:
        if term is not None or not echo:
            field = "term" if echo else "echo"
            raise InvalidRequest(f"{field}: only a terminal has it; add pty=True", field=field)
        return None
    from shoal.wire.agent import Terminal

    if pty is True:
        return Terminal(echo=echo, term=term)
    try:
        rows, columns = pty
    except (TypeError, ValueError):
        raise InvalidRequest(f"pty: {pty!r:.80} is neither True nor (rows, columns)", field="pty") from None
    return Terminal(rows, columns, echo, term)
