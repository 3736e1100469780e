"""Routes of rollouts in progress."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from shoal.cluster.api.access.auth import environment_for, environment_to_list
from shoal.cluster.api.request.answers import Json, listed
from shoal.cluster.api.request.context import Cluster, Who, context_of
from shoal.cluster.api.request.route import new_router, verb_route
from shoal.cluster.api.schema.control import EnvironmentQuery
from shoal.cluster.api.schema.rollouts import Rollout, RolloutId, Rollouts, RolloutSent
from shoal.model import verbs

router = new_router("rollouts")


@verb_route(router, verbs.rollouts, response_model=Rollouts, summary="List rollouts")
async def list_rollouts(who: Who, cluster: Cluster, environment: EnvironmentQuery = None) -> Json:
    """Those that run and the last ones that ended, without their rewards: of an environment, or of all that the token
    may see. Kept in memory, at most 100 of an environment, ended ones for a day."""
    return listed(verbs.rollouts, await cluster.ask(verbs.rollouts, environment_to_list(who, environment)))


@verb_route(router, verbs.rollout, response_model=Rollout, summary="Look at a rollout")
async def get_rollout(rollout_id: RolloutId, cluster: Cluster) -> Json:
    """How far it is, and its rewards over items."""
    return Json((await cluster.ask(verbs.rollout, rollout_id)).to_dict())


@verb_route(
    router, verbs.report_rollout, status_code=204, response_class=Response, summary="Report how far a rollout is"
)
async def report_rollout(
    rollout_id: RolloutId, body: RolloutSent, request: Request, who: Who, cluster: Cluster
) -> Response:
    """What `shoal.map` does by itself, each second. The first report makes a rollout known, under an id of your own
    making; one that has not reported for a minute is `lost`."""
    environment = context_of(request).environment = environment_for(who, body.environment)
    await cluster.ask(verbs.report_rollout, rollout_id, body.parsed(environment))
    return Response(status_code=204)
