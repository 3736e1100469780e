"""`shoal/dev` over HTTP: built where a request first asks for it. The Python client does so by itself."""

from __future__ import annotations

from dataclasses import replace

from shoal.client.image.dev import DEV, dev_reference
from shoal.model.spec import SandboxSpec
from shoal.transport.contract import Transport


async def with_dev_image(spec: SandboxSpec, cluster: Transport) -> SandboxSpec:
    """The spec with the image that `shoal/dev` was built as. The first time, that takes minutes, and it goes on if the
    client leaves meanwhile."""
    if spec.image != DEV:
        return spec
    return replace(spec, image=await dev_reference(cluster, spec.environment))
