"""What is around every request: its id, its line in the log, its count, its entry in the audit log, and the last resort
for its errors.

Plain ASGI, so streams pass through untouched.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.cluster.api.access.auth import check_local
from shoal.cluster.api.access.usage_reporter import UsageReporter
from shoal.cluster.api.request.context import NOBODY, SCOPE_KEY, RequestContext
from shoal.cluster.api.request.problems import answer
from shoal.model import call_context, tracing
from shoal.model.access import caller
from shoal.model.errors import Internal, ShoalError
from shoal.model.http import REQUEST_ID
from shoal.model.ids import SANDBOX
from shoal.model.settings import ApiSettings

_log = logging.getLogger("shoal.api")
_ID = re.compile(REQUEST_ID.encode())
_STARTS = frozenset({"http.response.start", "websocket.http.response.start"})
GONE = 499
"""The status in log and figures of a request whose client left before it was answered."""


class Frame:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, api: ApiSettings, reporter: UsageReporter) -> None:
        self._app = app
        self._api = api
        self._reporter = reporter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            await _Passage(scope, receive, send).run(self._app, self._api, self._reporter)
        else:
            await self._app(scope, receive, send)


class _Passage:
    """One request on its way."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self.status = 0
        self.finished = False
        self._send = send
        client = scope.get("client")
        self.context = RequestContext(_request_id(scope), client[0] if client else None)
        scope[SCOPE_KEY] = self.context
        self._id = self.context.request_id.encode("ascii")

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind in _STARTS or kind == "websocket.accept":
            self.status = message.get("status", 101)
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self._id)]
        elif kind == "http.response.body":
            self.finished = not message.get("more_body", False)
        elif kind == "websocket.close" and self.status == 0:
            self.status = 403
        try:
            await self._send(message)
        except OSError as error:
            raise ClientDisconnect from error

    async def run(self, app: ASGIApp, api: ApiSettings, reporter: UsageReporter) -> None:
        call_context.begin_request(self.context.request_id, _traceparent(self.scope))
        caller.set(NOBODY)  # a route that forgot to ask who calls can see nothing
        root = self.scope["path"] not in _UNTRACED
        with tracing.span(str(self.scope.get("method", "WS")), server=True, root=root) as span:
            await self._run(app, api, reporter)
            if span is not None:
                self._tell(span)

    async def _run(self, app: ASGIApp, api: ApiSettings, reporter: UsageReporter) -> None:
        began = time.perf_counter()
        try:
            if not api.auth:
                check_local(self.scope["headers"])
            await app(self.scope, self.receive, self.send)
        except ClientDisconnect:
            self.context.outcome = "disconnected"
        except ShoalError as error:
            await self._refuse(error)
        except RuntimeError as error:
            # How Starlette says that a known error came too late for a problem document.
            if not isinstance(error.__cause__, ShoalError) or self.status == 0:
                await self._defect()
            else:
                self.context.outcome = error.__cause__.code
                _log.warning("broken off in the midst of the answer: %s", error.__cause__)
        except Exception:  # noqa: BLE001  # the last resort: logged with its traceback, and answered
            await self._defect()
        finally:
            self._note(reporter, time.perf_counter() - began)

    async def _defect(self) -> None:
        _log.exception("a defect: request %s failed", self.context.request_id)
        await self._refuse(Internal("a defect of Shoal's; its log has more under this request id: please report it"))

    async def _refuse(self, error: ShoalError) -> None:
        """Answers with the error; where an answer has begun, that is left unfinished, which clients notice."""
        self.context.outcome = error.code
        if self.status:
            return
        if self.scope["type"] == "http":
            await answer(error, self.context.request_id)(self.scope, self.receive, self.send)
        else:
            await self.send({"type": "websocket.close", "code": 1011, "reason": error.code})

    def _note(self, reporter: UsageReporter, seconds: float) -> None:
        context, scope = self.context, self.scope
        status = self.status or GONE
        route = getattr(scope.get("route"), "path", "-")
        method = scope.get("method", "WS")
        reporter.answered(method if method in _METHODS else "OTHER", route, status, seconds)
        if context.action is not None and context.outcome != "unauthenticated":
            reporter.note(context)
        if _log.isEnabledFor(logging.INFO):
            _log.info(
                'method=%s route="%s" status=%d ms=%.1f outcome=%s token=%s environment=%s request=%s',
                method, route, status, seconds * 1000, context.outcome,
                context.caller.token, context.environment or context.caller.environment, context.request_id,
                extra={"fields": {"route": route, "status": status, "outcome": context.outcome,
                                  "sandbox_id": _sandbox(scope), "milliseconds": round(seconds * 1000, 1)}},
            )  # fmt: skip

    def _tell(self, span: Any) -> None:
        """Names the span, and says what came of the request, by OpenTelemetry's conventions."""
        context, scope = self.context, self.scope
        route = getattr(scope.get("route"), "path", "-")
        status = self.status or GONE
        span.update_name(f"{scope.get('method', 'WS')} {route}")
        tracing.note(
            span,
            route=route,
            status=status,
            sandbox_id=_sandbox(scope),
            environment=context.environment or context.caller.environment,
            outcome=context.outcome,
            command_s=context.command_s,
        )
        tracing.fail(span, context.outcome if status >= 500 else "")


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "WS"})


_UNTRACED = frozenset({"/v1/health", "/v1/ready", "/metrics"})
"""What machines ask all the time. No trace begins with it."""


def _traceparent(scope: Scope) -> str:
    """The caller's, where it sent one that can be followed."""
    for name, value in scope["headers"]:
        if name == b"traceparent":
            return call_context.parse(value.decode("latin-1"))
    return ""


def _sandbox(scope: Scope) -> str:
    """The sandbox that the request's path names; empty if it names none."""
    named = str(scope.get("path_params", {}).get("sandbox_id", ""))
    return named if SANDBOX.fullmatch(named) else ""


def _request_id(scope: Scope) -> str:
    """The client's own, where it is one, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(value):
            return str(value.decode("ascii"))
    return secrets.token_hex(10)
