"""The list of all engines."""

from __future__ import annotations

from collections.abc import Callable

from shoal.actors.engines.contract import Engine
from shoal.model.errors import InvalidRequest
from shoal.model.settings import Settings


def engine_named(name: str, settings: Settings) -> Engine:
    """The engine, not open yet. `InvalidRequest` (field `engine`) for an unknown name."""
    make = ENGINES.get(name)
    if make is None:
        raise InvalidRequest(f"engine: there is no {name!r}, only {', '.join(sorted(ENGINES))}", field="engine")
    return make(settings)


def _docker(settings: Settings) -> Engine:
    # Imported here: the SDK takes a tenth of a second, and may be absent.
    from shoal.actors.engines.disks import Disks
    from shoal.actors.engines.docker import DockerEngine

    disks = Disks(settings.state_dir / "node" / "disks")
    return DockerEngine(settings.engine_address, settings.node.start_limit, disks=disks, pids=settings.node.pids)


def _fake(_settings: Settings) -> Engine:
    from shoal.actors.engines.fake import FakeEngine

    return FakeEngine()


ENGINES: dict[str, Callable[[Settings], Engine]] = {"docker": _docker, "fake": _fake}
