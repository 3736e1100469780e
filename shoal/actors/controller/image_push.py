"""Sends images of the cluster to registries, from a node that has them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from shoal.actors.controller.image_verbs import ImageVerbs
from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.record_writer import RecordWriter, audited
from shoal.actors.controller.store import Change
from shoal.model import verbs
from shoal.model.access import Caller
from shoal.model.builds import PushedImage
from shoal.model.errors import FailedPrecondition
from shoal.model.validate import check_text


@dataclass(slots=True)
class ImagePush:
    """`call`: how actors are called."""

    images: ImageVerbs
    nodes: Nodes
    writer: RecordWriter
    call: Callable[..., Awaitable[Any]]

    async def push(self, image: str, environment: str | None, reference: str, caller: Caller) -> PushedImage:
        """Sends one, with the credentials that its node's engine has for the registry."""
        check_text("reference", reference, "where to send it: registry/name:tag")
        found = self.images.get(image, environment, caller)
        nodes = [node for machine in found.machines if (node := self.nodes.of_machine(machine)) is not None]
        if not nodes:
            raise FailedPrecondition(
                f"image: {found.id} is on no machine that is part of the cluster now", state="away", field="image"
            )
        entry = audited(verbs.push_image, caller, target=found.id, environment=found.environment)
        await self.writer.write(Change(audit=(entry,)))
        digest: str = await self.call(
            self.nodes.handle(nodes[0]), "push_image", found.digest, reference, timeout_s=verbs.PUSH_S
        )
        return PushedImage(reference, digest)
