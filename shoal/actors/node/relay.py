"""The relay process of a node: started, watched and, after a restart of the node actor, adopted.

It carries exec, files and streams, so it outlives the node actor: one that is restarted finds it by its control socket and goes on.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from shoal.model.errors import Internal, ShoalError, Unavailable, error_from_dict

IDLE_EXIT_S = 60
"""How long a relay lives with nobody at its control socket: long enough for Ray to restart a node actor."""

_ANSWER_S = 10.0
_FIRST_PAUSE_S = 0.05
_LOOK_EVERY_S = 0.05
_ASK_EVERY_S = 5.0

_BROKEN = (OSError, TimeoutError, ValueError, RuntimeError)
"""How a connection fails: a line too long is a `ValueError`, a transport that is closed uvloop's `RuntimeError`."""


class Relay:
    """The node's relay. `root` holds a directory per container; `listen_ip` is the cluster's address of this node."""

    def __init__(
        self, binary: Path, root: Path, listen_ip: str, port_file: Path, log: Path, secret: bytes, port: int = 0
    ) -> None:
        self._binary = binary
        self._root = root
        self._control = root.parent / "relay.sock"
        self._listen_ip = listen_ip
        self._port_file = port_file
        self._log = log
        self._secret = secret
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._turn = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._settled = False
        self.address = ""
        self.on_connected: Callable[[], Awaitable[None]] | None = None
        """Called, until it succeeds, after each connection to a relay that may have been started anew: it remembers no exposed port."""

    async def open(self) -> None:
        """Adopts the relay that runs, or starts one; watches it from then on."""
        self._root.mkdir(parents=True, exist_ok=True)
        await self._connect_or_start()
        self._watcher = asyncio.create_task(self._watch())

    async def detach(self) -> None:
        """Lets go of the relay: it runs on, for the next that opens it and for those whose streams it carries. Idempotent."""
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None
        self._drop()

    async def close(self) -> None:
        """Stops the relay. Idempotent."""
        await self.detach()
        if await self._connect():  # anew: on the old connection the watcher may have been cut short
            with suppress(Unavailable, Internal):
                await self.ask({"op": "stop"})
        self._drop()
        if self._process is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), 5)
            self._process = None
        self._control.unlink(missing_ok=True)
        self._port_file.unlink(missing_ok=True)

    async def add(self, key: str) -> None:
        """Listens for the agent of container `key`, whose directory exists. Idempotent."""
        await self.ask({"op": "add", "key": key})

    async def remove(self, key: str) -> None:
        """Cuts the container off: its listener and all its connections. Idempotent."""
        await self.ask({"op": "remove", "key": key})

    async def expose(self, key: str, port: int, private: bool, listen: int, sandbox_id: str) -> str:
        """The address (`host:port`) on this node that leads to a port in the container. Idempotent for the same `private`.

        `listen`: the node's port, 0: any. Raises `AlreadyExists` (it is taken), `NotFound`, `QuotaExceeded`.
        """
        request = {"op": "expose", "key": key, "port": port, "private": private, "listen": listen}
        return str((await self.ask({**request, "sandbox": sandbox_id}))["ok"]["address"])

    async def unexpose(self, key: str, port: int) -> None:
        """Closes the node's port for a port in the container, and its connections. Idempotent."""
        await self.ask({"op": "unexpose", "key": key, "port": port})

    async def exposed(self) -> list[tuple[str, int]]:
        """(key, port) of every port that is exposed."""
        info = await self.ask({"op": "info"})  # a relay of an older Shoal that was adopted exposes nothing
        return [(str(port["key"]), int(port["port"])) for port in info.get("exposed", ())]

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request on the control socket. `Unavailable` while the relay is down: it is being restarted."""
        async with self._turn:
            if self._reader is None or self._writer is None:
                raise Unavailable("the node's relay is being restarted; try again")
            try:
                self._writer.write(json.dumps(request).encode() + b"\n")
                async with asyncio.timeout(
                    _ANSWER_S
                ):  # `wait_for` may swallow a cancellation, and the watcher would never end
                    line = await self._reader.readline()
            except _BROKEN as error:
                self._drop()
                raise Unavailable(f"the node's relay did not answer: {error!r}") from error
            except asyncio.CancelledError:
                self._drop()  # or else the next request would take this one's answer for its own
                raise
            if not line:
                self._drop()
                raise Unavailable("the node's relay went away; it is being restarted")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            if "code" in answer:
                raise error_from_dict({k: answer.get(k) for k in ("code", "field")} | {"message": answer["error"]})
            raise Internal(f"the node's relay refused {request['op']}: {answer['error']}")
        return answer

    async def _connect_or_start(self) -> None:
        if not await self._connect():
            await self._start()
            if not await self._connect():
                raise Unavailable(f"the relay started but its control socket does not answer; see {self._log}")
        self.address = str((await self.ask({"op": "info"}))["address"])
        self._port_file.parent.mkdir(parents=True, exist_ok=True)
        self._port_file.write_text(self.address.rsplit(":", 1)[1])

    async def _connect(self) -> bool:
        self._settled = False
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(str(self._control), limit=1 << 22)
        except OSError:
            return False
        return True

    async def _start(self) -> None:
        """Starts one on the port that the last one had, so that clients who know its address find it again."""
        port = self._port or _remembered_port(self._port_file)
        for candidate in dict.fromkeys((port, self._port)):
            config = {
                "root": str(self._root),
                "listen": f"{self._listen_ip}:{candidate}",
                "secret": self._secret.hex(),
                "control": str(self._control),
                "idle_exit_s": IDLE_EXIT_S,
            }
            self._log.parent.mkdir(parents=True, exist_ok=True)
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                process = await asyncio.create_subprocess_exec(
                    str(self._binary),
                    "relay",
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,  # a signal to the node actor's group is not for the data plane
                )
            finally:
                os.close(log)
            assert process.stdin is not None
            assert process.stdout is not None
            line = b""
            try:
                process.stdin.write(json.dumps(config).encode() + b"\n")
                with suppress(TimeoutError):
                    async with asyncio.timeout(_ANSWER_S):
                        line = await process.stdout.readline()
            finally:
                if not line:  # it does not start, or nobody waits for it any more
                    with suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
            if line:
                self._process = process
                return
        raise Unavailable(f"the relay does not start; see {self._log}")

    async def _watch(self) -> None:
        """Keeps a control connection, which keeps the relay alive; starts a new relay when it is gone."""
        pause = _FIRST_PAUSE_S
        while True:
            try:
                if self._writer is None:
                    await self._connect_or_start()
                await self.ask({"op": "info"})
                if not self._settled and self.on_connected is not None:
                    await self.on_connected()
                    self._settled = True
                pause = _FIRST_PAUSE_S
                await self._lost()
            except (ShoalError, OSError):
                await asyncio.sleep(pause)
                pause = min(pause * 2, 2.0)

    async def _lost(self) -> None:
        """Returns as soon as the connection is at its end, or when it is time to ask again whether the relay is well."""
        for _ in range(round(_ASK_EVERY_S / _LOOK_EVERY_S)):
            if self._reader is None:
                return
            if self._reader.at_eof():
                self._drop()
                return
            await asyncio.sleep(_LOOK_EVERY_S)

    def _drop(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


def _remembered_port(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0
