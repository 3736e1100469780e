"""A real relay and real agents, without an engine: each agent is the first process of a pid namespace of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from shoal.images.binaries import agent_binary
from shoal.model import errors, grants, ids
from shoal.wire.agent import Agent, Connection

ROOT = Path(__file__).parents[2]
SCOPES = (grants.SCOPE_EXEC, grants.SCOPE_FILES, grants.SCOPE_ADMIN)


class RelayProcess:
    """A relay that can be killed and started again on the same address. `tls`: it speaks TLS; `secret`: its
    cluster's."""

    def __init__(self, root: Path, *, tls: bool = False, secret: bytes | None = None) -> None:
        self.root = root
        self.tls = tls
        self.fingerprint = ""
        self.secret = secret or secrets.token_bytes(32)
        self.listens = "127.0.0.1:0"
        self._control = root.parent / "control.sock"
        self._process: asyncio.subprocess.Process | None = None
        self._keys: set[str] = set()

    @property
    def address(self) -> str:
        """How clients reach it."""
        return grants.endpoint(self.listens, self.fingerprint)

    async def start(self) -> None:
        config = {
            "root": str(self.root),
            "listen": self.listens,
            "secret": self.secret.hex(),
            "control": str(self._control),
            "idle_exit_s": 300,
            "tls": self.tls,
        }
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(str(agent_binary()), "relay", stdin=pipe, stdout=pipe)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(config).encode() + b"\n")
        line = await asyncio.wait_for(self._process.stdout.readline(), 10)
        assert line, "the relay did not start"
        ready = json.loads(line)
        self.listens, self.fingerprint = ready["address"], ready["fingerprint"]
        for key in self._keys:
            await self.ask({"op": "add", "key": key})

    async def kill(self) -> None:
        """SIGKILL, and gone when this returns."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await process.communicate()

    async def add(self, key: str) -> None:
        (self.root / key).mkdir()
        (self.root / key / "secret").write_bytes(grants.agent_secret(self.secret, key))
        self._keys.add(key)
        await self.ask({"op": "add", "key": key})

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        reader, writer = await asyncio.open_unix_connection(str(self._control))
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            answer: dict[str, Any] = json.loads(await asyncio.wait_for(reader.readline(), 10))
        finally:
            writer.close()
            await writer.wait_closed()
        assert "error" not in answer, answer
        return answer


class AgentLab:
    """One relay and one agent. `directory`: a place for files that both sides see."""

    def __init__(self, relay: RelayProcess, key: str, pid: int, directory: Path) -> None:
        self.relay = relay
        self.key = key
        self.pid = pid  # of the agent, as seen from here
        self.directory = directory

    def token(self, *, ttl_s: float = 60, scopes: tuple[str, ...] = SCOPES, key: str | None = None) -> str:
        return grants.sign(self.relay.secret, "sb-test", key or self.key, scopes, time.time() + ttl_s)

    async def connect(self, *, wait_s: float = 10) -> Agent:
        return Agent(await Connection.open(self.relay.address, self.token(), wait_s=wait_s))

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Agent]:
        agent = await self.connect()
        try:
            yield agent
        finally:
            agent.connection.close()
            await agent.connection.wait_closed()

    def rss(self) -> int:
        """Bytes of memory that the agent's own process holds."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
        raise AssertionError("the agent is gone")

    async def gone(self) -> None:
        """Returns once the agent's process has ended."""
        for _ in range(500):
            if _ended(self.pid):
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the agent is still there")


@asynccontextmanager
async def agent_lab(*, tls: bool = False, secret: bytes | None = None) -> AsyncIterator[AgentLab]:
    """A relay and an agent; afterwards both are gone, and so is every process that the agent started."""
    await _build()
    with _directory() as top:
        relay = RelayProcess(top / "run", tls=tls, secret=secret)
        relay.root.mkdir()
        work = top / "work"
        work.mkdir()
        key = ids.new_container_key()
        unshare: asyncio.subprocess.Process | None = None
        made: AgentLab | None = None
        try:
            await relay.start()
            await relay.add(key)
            unshare = await asyncio.create_subprocess_exec(
                *("unshare", "--pid", "--fork", "--mount-proc", str(agent_binary()), "init"),
                env={**os.environ, "SHOAL_SOCKET": str(relay.root / key / "relay.sock")},
                stdin=asyncio.subprocess.DEVNULL,
                process_group=0,
            )
            made = AgentLab(relay, key, await _child_of(unshare.pid), work)
            yield made
        finally:
            if unshare is not None:
                await _end(unshare)
            if made is not None:
                # It dies after its parent: until then its processes may write where all is to be removed.
                await made.gone()
            await relay.kill()


async def _build() -> None:
    try:
        agent_binary()
    except errors.FailedPrecondition:
        build = await asyncio.create_subprocess_exec(sys.executable, str(ROOT / "hatch_build.py"), cwd=ROOT)
        assert await build.wait() == 0, "the agent does not build"


async def _end(unshare: asyncio.subprocess.Process) -> None:
    # The namespace's first process is in its group, and all others there die with that.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(unshare.pid, signal.SIGKILL)
    await asyncio.wait_for(unshare.wait(), 10)


async def _child_of(pid: int) -> int:
    for _ in range(500):
        found = _children(pid)
        if found:
            return found[0]
        await asyncio.sleep(0.01)
    raise AssertionError("unshare started nothing")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _ended(pid: int) -> bool:
    """Whether a process is no more, or a zombie; one whose first thread alone has ended is neither."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "Z" and len(os.listdir(f"/proc/{pid}/task")) == 1
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextmanager
def _directory() -> Iterator[Path]:
    # A unix socket's path has 107 bytes at most: not below pytest's own long directories.
    top = Path(tempfile.mkdtemp(prefix="shoal-"))
    try:
        yield top
    finally:
        shutil.rmtree(top)
