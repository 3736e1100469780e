"""The cluster at a glance."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from shoal.cluster.api.access.auth import environment_for
from shoal.cluster.api.request.answers import Json
from shoal.cluster.api.request.context import Cluster, Who
from shoal.cluster.api.request.route import new_router, verb_route
from shoal.model import verbs
from shoal.model.field_types import Name
from shoal.model.overview import Overview

router = new_router("administration")


@verb_route(router, verbs.overview, response_model=Overview, summary="Look at the cluster at a glance")
async def get_overview(
    who: Who,
    cluster: Cluster,
    environment: Annotated[
        Name | None, Query(description="Only its sandboxes; by default all that the token sees.")
    ] = None,
    since: Annotated[
        float | None, Query(ge=0, allow_inf_nan=False, description="Only points of the series after this time.")
    ] = None,
) -> Json:
    """How things are now, and series of the last hour in points of 10 s. Answers are at most a second old: ask every
    two seconds or so, with the last time of `series.at` as `since`. Nodes, regions and exec are null for tokens of one
    environment."""
    asked = None if environment is None else environment_for(who, environment)
    return Json(await cluster.ask(verbs.overview, asked, since))
