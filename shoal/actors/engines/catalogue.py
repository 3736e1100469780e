"""The list of all engines."""

from __future__ import annotations

import functools
from collections.abc import Callable

from shoal.actors.engines.contract import Engine
from shoal.actors.engines.seccomp import profile_json
from shoal.model.errors import InvalidRequest
from shoal.model.settings import Settings


def engine_named(name: str, settings: Settings) -> Engine:
    """The engine, not open yet. `shoal up` and `shoal join` have decided what `auto` is; on a Ray cluster of another
    kind it is the engine at the address, or Docker. `InvalidRequest` (field `engine`) for an unknown name."""
    if name == "auto":
        name = "oci" if (settings.engine_address or "").startswith("oci://") else "docker"
    make = ENGINES.get(name)
    if make is None:
        raise InvalidRequest(f"engine: there is no {name!r}, only {', '.join(sorted(ENGINES))}", field="engine")
    return make(settings)


def _docker(settings: Settings) -> Engine:
    # Imported here: the SDK takes a tenth of a second, and may be absent.
    from shoal.actors.engines.disks import Disks
    from shoal.actors.engines.docker import DockerEngine

    disks = Disks(settings.state_dir / "node" / "disks")
    node = settings.node
    seccomp = profile_json(node.seccomp_profile)
    return DockerEngine(settings.engine_address, node.start_limit, disks=disks, pids=node.pids, seccomp=seccomp)


def _oci(settings: Settings) -> Engine:
    from shoal.actors.engines import gvisor
    from shoal.actors.engines.disks import Disks
    from shoal.actors.engines.oci import OciEngine
    from shoal.actors.engines.oci.image_store import OciImageStore
    from shoal.actors.engines.oci.layers import LayerStore
    from shoal.actors.engines.oci.places import root_of

    node, root = settings.node, root_of(settings)
    layers = LayerStore(root, node.image_disk and node.image_disk << 20)
    engine = OciEngine(
        root,
        layers,
        functools.partial(OciImageStore, layers),
        node.start_limit,
        disks=Disks(settings.state_dir / "node" / "disks"),
        pids=node.pids,
        seccomp=profile_json(node.seccomp_profile),
        gvisor=gvisor.find(settings),
    )
    engine.layers = layers
    return engine


def _fake(_settings: Settings) -> Engine:
    from shoal.actors.engines.fake import FakeEngine

    return FakeEngine()


ENGINES: dict[str, Callable[[Settings], Engine]] = {"docker": _docker, "oci": _oci, "fake": _fake}
