"""The HTTP API as one ASGI application: what it consists of, in one list.

It holds nothing that another replica would miss: what it knows it has from the transport, what it counts it reports.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from shoal.cluster.api import health, metrics, overview, usage
from shoal.cluster.api.access import routes as admin
from shoal.cluster.api.access import session_routes
from shoal.cluster.api.access.auth import TokenCache
from shoal.cluster.api.access.sessions import Sessions
from shoal.cluster.api.access.usage_reporter import UsageReporter
from shoal.cluster.api.builds import routes as builds
from shoal.cluster.api.files import archive, entries
from shoal.cluster.api.files import routes as files
from shoal.cluster.api.images import routes as images
from shoal.cluster.api.pools import routes as pools
from shoal.cluster.api.processes import attach, connect
from shoal.cluster.api.processes import exec as execs
from shoal.cluster.api.processes import routes as processes
from shoal.cluster.api.request import problems
from shoal.cluster.api.request.limits import MOST_LARGE, LargeBodies
from shoal.cluster.api.request.middleware import Frame
from shoal.cluster.api.request.route import ApiRoute, StartRoute
from shoal.cluster.api.rollouts import routes as rollouts
from shoal.cluster.api.sandboxes import batch, events, logs
from shoal.cluster.api.sandboxes import routes as sandboxes
from shoal.cluster.api.schema import docs_page, openapi
from shoal.cluster.api.secrets import routes as secrets
from shoal.cluster.api.tunnels import routes as exposures
from shoal.cluster.api.volumes import files as volume_files
from shoal.cluster.api.volumes import routes as volumes
from shoal.cluster.dashboard import pages
from shoal.model import tasks
from shoal.model.hosts import check_open
from shoal.model.settings import Settings
from shoal.transport.contract import Transport
from shoal.wire.budget import Budget

_LAST_MAKES_S = 5.0
"""Seconds that a replica which ends gives to creates whose clients have left. What is on record by then the controller
sees through."""


def routers() -> list[APIRouter]:
    """Every group of routes, in the order in which they are tried: the busiest first, and `by-name/…` before all that a
    sandbox has."""
    return [
        execs.router,
        batch.router,
        sandboxes.router,
        processes.router,
        attach.router,
        connect.router,
        files.router,
        entries.router,
        archive.router,
        exposures.router,
        pools.router,
        rollouts.router,
        secrets.router,
        volumes.router,
        volume_files.router,
        builds.router,
        images.router,
        logs.router,
        events.router,
        admin.router,
        session_routes.router,
        metrics.router,
        overview.router,
        usage.sandboxes,
        usage.router,
        health.router,
        docs_page.router,
    ]


def make_app(transport: Transport, settings: Settings) -> FastAPI:
    """The application, for any ASGI server. `InvalidRequest` where authentication is off on an address that others
    reach."""
    check_open(settings.api)
    app = FastAPI(
        title="Shoal",
        version=openapi.VERSION,
        summary=openapi.SUMMARY,
        description=openapi.DESCRIPTION,
        openapi_tags=openapi.TAGS,
        lifespan=_lifespan,
        docs_url=None,  # it loads code from elsewhere: see `docs`
        redoc_url=None,
        # An address that is not in the document is none: nobody's token is to go where a Host header says.
        redirect_slashes=False,
    )
    reporter = UsageReporter(transport)
    app.state.transport = transport
    app.state.settings = settings
    app.state.usage_reporter = reporter
    app.state.tokens = TokenCache(transport, settings.api.token_cache)
    app.state.sessions = Sessions(transport, settings.api)
    app.state.outputs = Budget(execs.MOST_HELD)
    app.state.large_bodies = LargeBodies(max(MOST_LARGE, StartRoute.body_factor * settings.api.max_body))
    app.state.makes = set()  # creates that go on though their client may have left
    for router in routers():
        _take(app, router)
    if settings.api.dashboard:
        app.router.routes.extend(pages.routes())
    problems.install(app)
    openapi.install(app)
    app.add_middleware(Frame, api=settings.api, reporter=reporter)
    return app


def _take(app: FastAPI, router: APIRouter) -> None:
    """Adds a router's routes as they are: `include_router` would wrap each, and have it found through two tables
    instead of one."""
    for route in router.routes:
        if isinstance(route, APIRoute) and not isinstance(route, ApiRoute):
            raise TypeError(
                f"{route.path}: make its router with `routes.new_router`, which checks what every request must pass"
            )
        app.router.routes.append(route)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    reporter: UsageReporter = app.state.usage_reporter
    reporting = tasks.supervise(reporter.run, "report")
    try:
        yield
    finally:
        reporting.cancel()
        await asyncio.wait([reporting, *app.state.makes], timeout=_LAST_MAKES_S)
        await reporter.try_flush()
