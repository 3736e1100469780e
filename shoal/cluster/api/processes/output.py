"""A process's output as a response, from an offset on, resumed over a new connection if one breaks."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.requests import Request

from shoal.client.output import ProcessBytes
from shoal.client.retrying_agent import Patience, RetryingAgent
from shoal.cluster.api.processes.websockets import guard
from shoal.cluster.api.request.streaming import StreamingBody
from shoal.model.errors import FailedPrecondition, SandboxEnded, Unavailable
from shoal.wire.agent import OutputStream

OFFSET = "X-Shoal-Offset"


class OutputReader(ProcessBytes):
    """A process's stdout or stderr from `offset` on.

    Call `begin` first. Old output of the sandbox's own command may be gone; then it begins later. It never skips
    anything in the middle: if something was lost there, it ends with `Unavailable`, and a reader that comes back with
    its offset learns where the output begins. `peek`: the process does not wait for this reader.
    """

    def __init__(self, agent: RetryingAgent, process_id: str, fd: int, offset: int, *, peek: bool = False) -> None:
        super().__init__(agent, process_id, fd, peek=peek)
        self.offset = offset
        self._early: bytes | None = None
        self._end: int | None = None

    async def begin(self, *, follow: bool) -> int:
        """Attaches, and returns where the output begins. Without `follow` it ends with what there is now."""
        patience = Patience()
        while True:
            try:
                flow = await self._attached()
                patience.working()
            except (SandboxEnded, FailedPrecondition) as over:
                self._let_go()
                self._early = await self._after_sandbox(over)
                return self.offset - len(self._early)
            except Unavailable as error:
                self._let_go()
                await patience.after(error)
            except BaseException:
                self._let_go()
                raise
            else:
                assert isinstance(flow, OutputStream)
                assert flow.held is not None
                self.offset, end = flow.held
                self._end = None if follow else end
                return self.offset

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._early:
            yield self._early
        while self._end is None or self.offset < self._end:
            before = self.offset
            data = await self.next()
            if not data:
                return
            if self.offset != before + len(data):
                raise Unavailable(
                    f"output from {before} to {self.offset - len(data)} is lost: it was not read in time; "
                    f"continue at the offset {before}"
                )
            yield data if self._end is None else data[: self._end - before]

    async def aclose(self) -> None:
        """Closes the stream."""
        await self.close()


async def output_response(source: OutputReader, request: Request, *, follow: bool) -> StreamingBody:
    """The response. `X-Shoal-Offset` says where it begins."""
    begin = await source.begin(follow=follow)
    headers = {OFFSET: str(begin), "Content-Disposition": "attachment", "Cache-Control": "no-store"}
    return StreamingBody(source, headers=headers, check=lambda: guard(request))
