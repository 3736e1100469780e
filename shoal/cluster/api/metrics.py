"""The cluster's figures in Prometheus' text format, version 0.0.4."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Annotated

from fastapi import Depends
from starlette.responses import PlainTextResponse

from shoal.cluster.api.access.audit import get_usage_reporter
from shoal.cluster.api.access.auth import needs
from shoal.cluster.api.access.usage_reporter import UsageReporter
from shoal.cluster.api.request.context import Cluster
from shoal.cluster.api.request.route import new_router
from shoal.model import verbs
from shoal.model.access import Caller, Scope

_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BOUND = re.compile(r'le="([^"]+)"')
_PARTS = ("_bucket", "_count", "_sum")

router = new_router("administration")


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    summary="Figures for Prometheus",
)
async def get_metrics(
    who: Annotated[Caller, needs(Scope.READ, everywhere=True)],
    cluster: Cluster,
    reporter: Annotated[UsageReporter, Depends(get_usage_reporter)],
) -> PlainTextResponse:
    """The whole cluster's figures, whichever replica answers; those of requests are at most a second old."""
    await reporter.try_flush()
    return PlainTextResponse("".join(exposition(await cluster.ask(verbs.metrics))), media_type=_TYPE)


def exposition(figures: Mapping[str, float]) -> Iterator[str]:
    """The lines for figures by `name{label="value"}`, those of one family together and under its type, as the format wants it."""
    histograms = {_name(key).removesuffix("_bucket") for key in figures if _name(key).endswith("_bucket")}

    def family(key: str) -> str:
        name = _name(key)
        return next((name.removesuffix(p) for p in _PARTS if name.removesuffix(p) in histograms), name)

    for name, keys in groupby(sorted(figures, key=lambda key: (family(key), *_place(key))), family):
        kind = "histogram" if name in histograms else "counter" if name.endswith("_total") else "gauge"
        yield f"# TYPE {name} {kind}\n"
        for key in keys:
            yield f"{key} {_number(figures[key])}\n"


def _name(key: str) -> str:
    return key.partition("{")[0]


def _place(key: str) -> tuple[str, str, float]:
    """Where a line stands in its family: buckets by their bounds."""
    bound = _BOUND.search(key)
    return _name(key), _BOUND.sub("", key), 0.0 if bound is None else float(bound[1])


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1 << 53 else repr(float(value))
