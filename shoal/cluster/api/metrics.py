"""The cluster's metrics in Prometheus' text format."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import PlainTextResponse

from shoal.cluster.api.access.audit import get_usage_reporter
from shoal.cluster.api.access.auth import needs
from shoal.cluster.api.access.usage_reporter import UsageReporter
from shoal.cluster.api.request.context import Cluster
from shoal.cluster.api.request.route import new_router
from shoal.model import verbs
from shoal.model.access import Caller, Scope
from shoal.model.metrics import exposition

router = new_router("administration")


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    summary="Metrics for Prometheus",
)
async def get_metrics(
    who: Annotated[Caller, needs(Scope.READ, everywhere=True)],
    cluster: Cluster,
    reporter: Annotated[UsageReporter, Depends(get_usage_reporter)],
) -> PlainTextResponse:
    """The metrics of the whole cluster, whichever replica answers. Those of other replicas are at most a second old."""
    await reporter.try_flush()
    return PlainTextResponse(exposition(await cluster.ask(verbs.metrics)), media_type=CONTENT_TYPE_PLAIN_0_0_4)
