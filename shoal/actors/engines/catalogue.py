"""Every engine there is, in one list."""

from __future__ import annotations

from collections.abc import Callable

from shoal.actors.engines.contract import Engine
from shoal.model.errors import InvalidRequest
from shoal.model.settings import Settings


def engine_named(name: str, settings: Settings) -> Engine:
    """The engine, not yet open. `InvalidRequest` (field `engine`) for a name that is not in the list."""
    make = ENGINES.get(name)
    if make is None:
        raise InvalidRequest(f"engine: there is no {name!r}, only {', '.join(sorted(ENGINES))}", field="engine")
    return make(settings)


def _docker(settings: Settings) -> Engine:
    # Importing the SDK takes a tenth of a second, and only who uses it should need it.
    from shoal.actors.engines.docker import DockerEngine

    return DockerEngine(settings.engine_address, settings.node.start_limit)


def _fake(_settings: Settings) -> Engine:
    from shoal.actors.engines.fake import FakeEngine

    return FakeEngine()


ENGINES: dict[str, Callable[[Settings], Engine]] = {"docker": _docker, "fake": _fake}
