"""What sandboxes use: one of them, all of them, and the accounts; and where the time of a create went."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import Query
from starlette.responses import Response

from shoal.cluster.api.access.auth import environment_for
from shoal.cluster.api.request.answers import Json, listed
from shoal.cluster.api.request.context import Cluster, Who
from shoal.cluster.api.request.route import new_router, verb_route
from shoal.cluster.api.schema.control import SandboxId, Told
from shoal.model import verbs
from shoal.model.field_types import Name
from shoal.model.profile import CreateProfile
from shoal.model.usage import AMOUNTS, SandboxLoad, SandboxUsage, UsageRow

_Seconds = Annotated[float | None, Query(ge=0, le=1e12, allow_inf_nan=False, description="Unix seconds, to the hour.")]
_CSV = "text/csv"

sandboxes = new_router("sandboxes")
router = new_router("administration")


class Usage(Told):
    """The accounts, by time or the longest first."""

    usage: Sequence[UsageRow]


@verb_route(sandboxes, verbs.sandbox_usage, response_model=SandboxUsage, summary="Look at what a sandbox uses")
async def get_sandbox_usage(
    sandbox_id: SandboxId,
    cluster: Cluster,
    since: Annotated[float | None, Query(ge=0, allow_inf_nan=False, description="Only points after this time.")] = None,
) -> Json:
    """What it uses now, and used in the last hour, in points of 10 s. Its node keeps that for an hour after its end."""
    return Json(await cluster.ask(verbs.sandbox_usage, sandbox_id, since))


@verb_route(sandboxes, verbs.profile, response_model=CreateProfile, summary="Look at where a create's time went")
async def get_profile(sandbox_id: SandboxId, cluster: Cluster) -> Json:
    """Step by step: the store, the queue, the node, the container, its agent. The controller's steps are forgotten when
    it is restarted, and once the sandbox has ended."""
    return Json(await cluster.ask(verbs.profile, sandbox_id))


@verb_route(
    router,
    verbs.usage,
    response_model=Usage,
    responses={200: {"content": {_CSV: {"schema": {"type": "string"}}}}},
    summary="Read the accounts",
)
async def get_usage(
    who: Who,
    cluster: Cluster,
    by: Annotated[
        str, Query(min_length=1, max_length=300, description="`environment`, `day`, `hour`, or `tag:KEY`.")
    ] = "environment",
    since: _Seconds = None,
    until: _Seconds = None,
    environment: Annotated[
        Name | None, Query(description="Only its sandboxes; by default all that the token sees.")
    ] = None,
    format: Annotated[Literal["json", "csv"], Query()] = "json",
) -> Response:
    """What sandboxes used, summed. Half a minute late; kept for `store.usage_retention` seconds."""
    asked = None if environment is None else environment_for(who, environment)
    rows = await cluster.ask(verbs.usage, by, since, until, asked)
    return listed(verbs.usage, rows) if format == "json" else Response(to_csv(rows), media_type=_CSV)


class Loads(Told):
    """What sandboxes that run use."""

    sandboxes: Sequence[SandboxLoad]


@verb_route(router, verbs.loads, response_model=Loads, summary="Look at what all sandboxes use")
async def get_loads(
    who: Who,
    cluster: Cluster,
    environment: Annotated[
        Name | None, Query(description="Only its sandboxes; by default all that the token sees.")
    ] = None,
) -> Json:
    """As their nodes saw it last, some seconds ago. One that has just started is missing."""
    asked = None if environment is None else environment_for(who, environment)
    return Json({"sandboxes": await cluster.ask(verbs.loads, asked)})


def to_csv(rows: Sequence[UsageRow]) -> str:
    """A line each, after one with the columns' names. A spreadsheet takes no key for a formula."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("key", *AMOUNTS))
    for row in rows:
        key = f"'{row.key}" if row.key[:1] in "=+-@\t\r" and row.key else row.key
        writer.writerow((key, *(getattr(row, name) for name in AMOUNTS)))
    return text.getvalue()
