"""Dependencies of routes that enter their use in the audit log, or count it."""

from __future__ import annotations

from typing import cast

from fastapi import params
from starlette.requests import HTTPConnection

from shoal.cluster.api.access.usage_reporter import UsageReporter
from shoal.cluster.api.request.context import context_of


async def get_usage_reporter(connection: HTTPConnection) -> UsageReporter:
    """A dependency: where this replica counts, and notes what is for the audit log."""
    return cast(UsageReporter, connection.app.state.usage_reporter)


class Audited:
    """Marks a route whose use is entered in the audit log, refused or not: see `audited`."""

    def __init__(self, action: str, target: str | None) -> None:
        self.action = action
        self.target = target

    def begin(self, connection: HTTPConnection) -> None:
        """Says what the request is about."""
        context = context_of(connection)
        context.action = self.action
        if self.target is not None:
            context.target = connection.path_params.get(self.target)

    async def __call__(self, connection: HTTPConnection) -> None:
        if connection.scope["type"] == "websocket":
            self.begin(connection)
            settle(connection)


class Counted:
    """Counts a route's uses: see `counted`."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def __call__(self, connection: HTTPConnection) -> None:
        context_of(connection).counter = self.name
        settle(connection)


def settle(connection: HTTPConnection) -> None:
    """Once the caller is admitted, whichever dependency runs first: counts the use, and enters a WebSocket in the audit
    log.

    A WebSocket may last for days, so it is entered when it begins.
    """
    context = context_of(connection)
    reporter: UsageReporter = connection.app.state.usage_reporter
    if not context.admitted:
        return
    if context.counter is not None:
        reporter.add(context.counter, 1)
        context.counter = None
    if context.action is not None and connection.scope["type"] == "websocket":
        reporter.note(context)
        context.action = None


def audited(action: str, target: str | None = "sandbox_id") -> params.Depends:
    """A dependency: the route's use goes into the audit log as `action`, on what its path parameter `target` names.

    An HTTP request is entered once it is answered, with its outcome; a WebSocket when it is admitted.
    """
    return params.Depends(Audited(action, target))


def counted(name: str) -> params.Depends:
    """A dependency: the route's use adds 1 to the counter `name`, such as `shoal_execs_total`."""
    return params.Depends(Counted(name))
