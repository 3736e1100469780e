"""Sets up what a process of the cluster tells about itself: its log and, where they are wanted, its traces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.model import tracing
from shoal.model.logs import write_logs

if TYPE_CHECKING:
    from shoal.model.settings import TelemetrySettings


def begin(settings: TelemetrySettings, component: str, **names: str) -> None:
    """For a process that is nothing but this component. `names`: attributes that tell it from others of its kind, by
    OpenTelemetry's conventions."""
    write_logs(settings.log_format, component)
    begin_traces(settings, component, **names)


def begin_traces(settings: TelemetrySettings, component: str, **names: str) -> None:
    """The traces alone, for a process whose log another program writes."""
    if settings.traces is not None:
        tracing.start(settings.traces, component, share=settings.trace_share, headers=settings.headers, names=names)
