"""What a step does in a sandbox: runs a command, or unpacks files. All that it raises says which step it was."""

from __future__ import annotations

import asyncio
import codecs
import fnmatch
import functools
import posixpath
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from shoal.client.process import Process
from shoal.client.retrying_agent import RetryingAgent
from shoal.client.sandbox import Sandbox
from shoal.cluster.builds.log import Log
from shoal.model.errors import (
    CommandNotExecutable,
    CommandNotFound,
    DeadlineExceeded,
    ImageBuildError,
    InvalidRequest,
    NotFound,
    PathNotFound,
    PermissionDenied,
    QuotaExceeded,
    SandboxEnded,
    ShoalError,
)
from shoal.model.recipe import Add, Copy, ImageDefaults, Run
from shoal.wire.agent import Agent
from shoal.wire.records import Entry

ROOT = "0"
_TAIL = 4000
"""Characters of the log that an error carries."""

_LAST_OUTPUT_S = 2.0
"""Seconds that output may still come after a command's end: what it left running may hold its stdout open."""

_PIECE = 1 << 20
_SHOWN = 200
"""Characters of a line that stands in an error's message."""

_LAST_LINES = 5
_DISK_FULL = "No space left on device"
_MORE_DISK = "; allow more with disk="
_OWN = "shoal: "
"""How lines begin that Shoal's own programs in `shoal/base` write."""

_STEPS_FAULT = (
    CommandNotFound,
    CommandNotExecutable,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    SandboxEnded,
)


class StepRunner:
    """Runs one step in a sandbox. `agent`: the sandbox's; `number`: from 1; `title`: the step as text."""

    def __init__(
        self, sandbox: Sandbox, agent: RetryingAgent, log: Log, number: int, title: str, timeout_s: float
    ) -> None:
        self._sandbox = sandbox
        self._agent = agent
        self._log = log
        self._number = number
        self._title = title
        self._timeout_s = timeout_s

    async def run(self, step: Run | Add, defaults: ImageDefaults, archive: Path | None) -> None:
        """`archive`: of the files to add. Raises `ImageBuildError`, `DeadlineExceeded`, and what is not the step's own
        fault: `Unavailable`, a `SandboxEnded` whose machine was lost."""
        with self._faults():
            if isinstance(step, Run):
                user = step.user if step.user is not None else defaults.user or None
                await self._command(step.argv, {**defaults.env, **step.env}, defaults.workdir or None, user)
            else:
                assert archive is not None
                await self._unpack(step, archive)

    async def copy(self, step: Copy, source: RetryingAgent) -> None:
        """Copies files of another image's sandbox. Raises as `run` does."""
        with self._faults():
            found = [entry for pattern in step.sources for entry in await _matching(source, pattern)]
            into = step.into or len(found) > 1
            copied: list[str] = []
            for path, is_directory in found:
                if is_directory:
                    copied += await self._copy_tree(source, path, step.path)
                else:
                    target = posixpath.join(step.path, posixpath.basename(path)) if into else step.path
                    await self._copy_file(source, path, target)
                    copied.append(target)
            self._log.write(f"{len(copied)} entries\n")
            for tool, value in (("chown", step.owner), ("chmod", step.mode)):
                if value and copied:
                    flags = "-hR" if tool == "chown" else "-R"
                    await self._command([tool, flags, value, "--", *copied], {}, None, ROOT)

    async def _copy_tree(self, source: RetryingAgent, path: str, target: str) -> list[str]:
        """Copies what is in a directory; returns the paths at the top."""
        entries = await source.call(lambda agent: agent.list(path, user=ROOT))
        await self._pass_tree(source, path, target)
        return [posixpath.join(target, entry.name) for entry in entries]

    async def _copy_file(self, source: RetryingAgent, path: str, target: str) -> None:
        """In a directory of its own first, as it has its old name there."""
        beside = posixpath.join(posixpath.dirname(target), f".shoal-copy-{secrets.token_hex(4)}")
        await self._pass_tree(source, path, beside)
        name = posixpath.join(beside, posixpath.basename(path))
        await self._agent.once(lambda agent: agent.move(name, target, overwrite=True, user=ROOT), "copy a file")
        await self._agent.call(lambda agent: agent.remove(beside, recursive=True, user=ROOT))

    async def _pass_tree(self, source: RetryingAgent, path: str, target: str) -> None:
        async def send(agent: Agent) -> object:
            chunks = (await source.connect()).pack(path, ROOT)
            try:
                return await agent.unpack(target, chunks, ROOT)
            finally:
                await chunks.aclose()

        await self._agent.call(send)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """What is the step's own fault becomes its error."""
        try:
            yield
        except ImageBuildError:
            raise
        except _STEPS_FAULT as error:
            if error.retryable:
                raise
            full = _DISK_FULL.lower() in error.message.lower()
            why = f"{error.message}{_MORE_DISK if full else ''}"
            raise self.failed(why, getattr(error, "exit_code", None)) from None

    def failed(self, why: str, exit_code: int | None = None) -> ImageBuildError:
        """The error of this step."""
        return ImageBuildError(
            f"step {self._number} ({self._title}): {why}",
            step=self._number,
            text=self._title,
            exit_code=exit_code,
            log=self._log.tail(_TAIL),
        )

    async def _command(
        self, argv: Sequence[str], env: Mapping[str, str], workdir: str | None, user: str | None
    ) -> None:
        before = self._log.offset
        process = await self._sandbox.exec.aio(
            list(argv),
            env=env,
            workdir=workdir,
            user=user,
            timeout=self._timeout_s,
            merge_stderr=True,
            text=False,
        )
        await process.stdin.close.aio()
        reading = asyncio.ensure_future(self._pass_on(process))
        try:
            code = await process.wait.aio()
            await asyncio.wait([reading], timeout=_LAST_OUTPUT_S)
            if reading.done():
                reading.result()
        finally:
            reading.cancel()
            await asyncio.wait([reading])
        if process.timed_out:
            raise DeadlineExceeded(f"step {self._number} ({self._title}) was still running at the build's timeout")
        if code != 0:
            why = explain(self._log.tail(_TAIL, before))
            raise self.failed(f"it exited with {code}{': ' + why if why else ''}", code)

    async def _pass_on(self, process: Process[bytes]) -> None:
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        async for piece in process.stdout:
            self._log.write(decode(piece).replace("\r\n", "\n"))

    async def _unpack(self, step: Add, archive: Path) -> None:
        moved = await self._agent.call(lambda agent: agent.unpack(step.path, _pieces(archive), ROOT))
        self._log.write(f"{moved['files']} files, {moved['bytes']} bytes\n")
        if step.owner and step.entries:
            paths = [posixpath.join(step.path, entry) for entry in step.entries]
            await self._command(["chown", "-hR", step.owner, "--", *paths], {}, None, ROOT)


async def _matching(agent: RetryingAgent, pattern: str) -> list[tuple[str, bool]]:
    """The paths that a source means, and whether each is a directory; `PathNotFound` where there is none."""
    directory, name = posixpath.split(pattern)
    paths = [pattern]
    if any(sign in name for sign in "*?["):
        entries = await agent.call(lambda each: each.list(directory, user=ROOT))
        found = sorted(entry.name for entry in entries if fnmatch.fnmatchcase(entry.name, name))
        paths = [posixpath.join(directory, each) for each in found]
        if not paths:
            raise PathNotFound(f"{pattern}: nothing in the other image is called so", field="path")
    stats = [await agent.call(functools.partial(_stat, path)) for path in paths]
    return [(path, stat.kind == "dir") for path, stat in zip(paths, stats, strict=True)]


async def _stat(path: str, agent: Agent) -> Entry:
    return await agent.stat(path, follow=True, user=ROOT)


async def _pieces(archive: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(archive.open, "rb") as file:
        while piece := await asyncio.to_thread(file.read, _PIECE):
            yield piece


def explain(output: str) -> str:
    """What the end of a command's output says about its failure, in one line; "": nothing."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    full = [line for line in lines[-_LAST_LINES:] if _DISK_FULL in line]
    if full:
        return f"{full[-1][:_SHOWN]}{_MORE_DISK}"
    own = len(lines)  # what Shoal's own programs add at the end, several lines of one text
    while own > 0 and lines[own - 1].startswith(_OWN):
        own -= 1
    if own < len(lines):
        return " ".join(line.removeprefix(_OWN) for line in lines[own:])[: 2 * _SHOWN]
    return lines[-1][:_SHOWN] if lines else ""


def message_of(error: BaseException) -> str:
    """What an error says, for the log."""
    return error.message if isinstance(error, ShoalError) else repr(error)
