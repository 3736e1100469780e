"""The agent's calls, typed: the interface to the inside of a sandbox.

Requests are checked before anything is sent (`InvalidRequest`); replies are bounded and checked (`Internal` if
malformed). If the connection breaks, open calls fail with `Unavailable`: open another connection and repeat the call.
`run`, `exec`, `output` and `stdin` are safe to repeat and lose nothing.

Flows (`output`, `read`, `pack`, `watch`) may be awaited, entered with `async with`, or iterated over directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.wire import checks, records
from shoal.wire.connection import Connection
from shoal.wire.files import FileCalls
from shoal.wire.flows import Chunks, OutputStream, StdinStream, WatchStream
from shoal.wire.processes import REPLY_S, ProcessCalls
from shoal.wire.records import Entry, Exit, RunResult, Start, Terminal, WatchEvent

__all__ = [
    "Agent",
    "Chunks",
    "Connection",
    "Entry",
    "Exit",
    "OutputStream",
    "RunResult",
    "Start",
    "StdinStream",
    "Terminal",
    "WatchEvent",
    "WatchStream",
]


class Agent(ProcessCalls, FileCalls):
    """All calls to one sandbox's agent over one connection, any number at a time."""

    async def ping(self) -> dict[str, Any]:
        """The agent's `version`, `uptime_ms`, and `processes`, the number it remembers."""
        reply = await self.connection.request({"op": "ping"}, timeout_s=REPLY_S)
        return {
            "version": reply.get("version") if type(reply.get("version")) is int else records.text(reply, "version"),
            "uptime_ms": records.whole(reply, "uptime_ms", 0, checks.MAX_OFFSET),
            "processes": records.whole(reply, "processes", 0, checks.MAX_OFFSET),
        }

    async def configure(
        self,
        env: Mapping[str, str | None] | None = None,
        workdir: checks.PathLike | None = None,
        user: str = "",
        secrets: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """Sets defaults of later starts: environment (added to the container's), directory (created if missing), user.

        `secrets`: files by directory, which must be memory; given, even if empty, processes leave no core files. Needs
        the scope `admin`.
        """
        request: dict[str, Any] = {"op": "configure", "env": checks.env(env or {}), "user": checks.user(user)}
        if workdir is not None:
            request["workdir"] = checks.directory(workdir)
        if secrets is not None:
            request["no_core"] = True
            request["secrets"] = [{"directory": each, "files": dict(files)} for each, files in secrets.items()]
        await self.connection.request(request, timeout_s=REPLY_S)

    async def idle(self, after_s: float) -> float:
        """Waits, without a time limit, until the sandbox has been idle for `after_s`; returns for how long it was."""
        request = {"op": "idle", "after_ms": checks.milliseconds(after_s, "after_s")}
        return records.whole(await self.connection.request(request), "idle_ms", 0, checks.MAX_OFFSET) / 1000

    async def shutdown(self, grace_s: float) -> None:
        """Ends all processes (SIGTERM, and SIGKILL after `grace_s`) and then the agent."""
        request = {"op": "shutdown", "grace_ms": checks.milliseconds(grace_s, "grace_s")}
        await self.connection.request(request, timeout_s=grace_s + REPLY_S)
