"""A Go program that a node runs beside its actor: started, watched and, after a restart of the actor, adopted.

It outlives the node actor, so that what it carries goes on: an actor that is restarted finds it by its control socket.
Each starts with one line of configuration on its input and answers with one line once it is ready.
"""

from __future__ import annotations

import asyncio
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from shoal.model import tasks
from shoal.model.errors import Internal, Unavailable, error_from_dict

IDLE_EXIT_S = 60
"""How long a program lives with nobody at its control socket: long enough for Ray to restart a node actor."""

_ANSWER_S = 10.0
_END_S = 5.0
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0
_ASK_EVERY_S = 5.0

_BROKEN = (OSError, TimeoutError, ValueError, RuntimeError)
"""How a connection fails: a line too long is a `ValueError`, a transport that is closed uvloop's `RuntimeError`."""


_spawning = asyncio.Lock()
"""One program is started at a time: a descriptor that is being passed to one must not be inherited by another."""


class Program(ABC):
    """One program. `name`: what messages call it; `mode`: the binary's first argument."""

    def __init__(self, binary: Path, name: str, mode: str, control: Path, log: Path) -> None:
        self.control = control
        self.log = log
        self.binary = binary
        self._name = name
        self._mode = mode
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._end: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        """A second connection, on which nothing is ever said: it is at its end once the program is."""
        self._turn = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._settled = False
        self.on_connected: Callable[[], Awaitable[None]] | None = None
        """Called, until it succeeds, after each connection to a program that may have been started anew and remembers
        nothing.
        """

    @abstractmethod
    async def start(self) -> None:
        """Starts the program, by `launch`; `Unavailable` where it does not start."""

    @abstractmethod
    async def connected(self, info: dict[str, Any]) -> None:
        """Takes note of a program that was started or adopted: what it answers to `info`."""

    @property
    def watched(self) -> bool:
        """Whether it is started anew where it ends."""
        return self._watcher is not None

    @property
    def is_connected(self) -> bool:
        """Whether there is a control connection."""
        return self._writer is not None

    async def open(self) -> None:
        """Adopts the program that runs, or starts one; watches it from then on."""
        await self._connect_or_start()
        self.watch()

    def watch(self) -> None:
        """Adopts or starts the program as soon as that is possible, and again whenever it is gone."""
        self._watcher = tasks.supervise(
            self._keep, f"the node's {self._name}", pauses_s=(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        )

    async def pause(self) -> None:
        """Watches no more, until `watch`; the control connection stays."""
        if self._watcher is not None:
            await tasks.stop(self._watcher)
            self._watcher = None

    async def detach(self) -> None:
        """Lets go of the program, which runs on for the next that opens it. Idempotent."""
        await self.pause()
        self.drop()

    async def close(self) -> None:
        """Stops the program. Idempotent."""
        await self.detach()
        if await self.connect():  # anew: on the old connection the watcher may have been cut short
            with suppress(Unavailable, Internal):
                await self.ask({"op": "stop"})
        self.drop()
        if self._process is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_S):
                    await self._process.wait()
            self._process = None
        self.control.unlink(missing_ok=True)

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request on the control socket. `Unavailable` while the program is down: it is being restarted."""
        async with self._turn:
            if self._reader is None or self._writer is None:
                raise Unavailable(f"the node's {self._name} is being restarted; try again")
            try:
                self._writer.write(json.dumps(request).encode() + b"\n")
                async with asyncio.timeout(_ANSWER_S):  # `wait_for` may swallow a cancellation, which ends the watcher
                    line = await self._reader.readline()
            except _BROKEN as error:
                self.drop()
                raise Unavailable(f"the node's {self._name} did not answer: {error!r}") from error
            except asyncio.CancelledError:
                self.drop()  # or else the next request would take this one's answer for its own
                raise
            if not line:
                self.drop()
                raise Unavailable(f"the node's {self._name} went away; it is being restarted")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            if "code" in answer:
                raise error_from_dict({k: answer.get(k) for k in ("code", "field")} | {"message": answer["error"]})
            raise Internal(f"the node's {self._name} refused {request['op']}: {answer['error']}")
        return answer

    async def launch(self, configuration: dict[str, Any], pass_fds: Sequence[int] = ()) -> dict[str, Any] | None:
        """Starts a process and returns what it says once it is ready; None where it ends without a word (see `log`).

        `pass_fds`: open in the process under the same numbers. They are closed here: uvloop leaves what it passes on
        inheritable, and the next process would hold them, too.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            async with _spawning:
                process = await asyncio.create_subprocess_exec(
                    str(self.binary),
                    self._mode,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                    pass_fds=pass_fds,
                    start_new_session=True,  # a signal to the node actor's group is not for the data plane
                )
                for descriptor in pass_fds:
                    os.close(descriptor)
                pass_fds = ()
        finally:
            for descriptor in (log, *pass_fds):
                os.close(descriptor)
        assert process.stdin is not None
        assert process.stdout is not None
        line = b""
        try:
            process.stdin.write(json.dumps(configuration).encode() + b"\n")
            with suppress(TimeoutError):
                async with asyncio.timeout(_ANSWER_S):
                    line = await process.stdout.readline()
        finally:
            if not line:  # it does not start, or nobody waits for it any more
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if not line:
            return None
        self._process = process
        await asyncio.to_thread(put_first, process.pid)
        ready: dict[str, Any] = json.loads(line)
        return ready

    async def connect(self) -> bool:
        """Whether a program answers at the control socket; then it is spoken with from now on."""
        self._settled = False
        self.drop()
        try:
            self._end = await asyncio.open_unix_connection(str(self.control))
            self._reader, self._writer = await asyncio.open_unix_connection(str(self.control), limit=1 << 22)
        except OSError:
            self.drop()
            return False
        return True

    def drop(self) -> None:
        """Ends the control connection."""
        if self._writer is not None:
            self._writer.close()
        if self._end is not None:
            self._end[1].close()
        self._reader = self._writer = self._end = None

    async def _connect_or_start(self) -> None:
        if not await self.connect():
            await self.start()
            if not await self.connect():
                raise Unavailable(f"the {self._name} started but its control socket does not answer; see {self.log}")
        await self.connected(await self.ask({"op": "info"}))

    async def _keep(self) -> None:
        """Keeps a control connection, which keeps the program alive; starts a new one when it is gone."""
        while True:
            if self._writer is None:
                await self._connect_or_start()
            await self.ask({"op": "info"})
            if not self._settled and self.on_connected is not None:
                await self.on_connected()
                self._settled = True
            await self._lost()

    async def _lost(self) -> None:
        """Returns once the connection is at its end, or when it is time to ask again whether the program is well."""
        try:
            async with asyncio.timeout(_ASK_EVERY_S):
                if self._end is not None:  # None where a request that failed has dropped the connection meanwhile
                    await self._end[0].read(1)
        except TimeoutError:
            return
        except OSError:
            pass  # an end like any other
        self.drop()


def put_first(pid: int) -> None:
    """Has a process go before those that Ray has started, and what they have started: Ray makes all of them nice by 15,
    and hundreds of them wake a hundred times a second each. Only root may; else it stays as it is."""
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # each has a niceness of its own; those to come have that of one
            os.setpriority(os.PRIO_PROCESS, int(thread), 0)
