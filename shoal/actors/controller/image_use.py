"""Which image a spec means, where sandboxes of it may run, and what needs an image."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from shoal.actors.controller.images import Images
from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.record import HeldImage
from shoal.actors.controller.registry import Registry
from shoal.actors.names import IMAGE_REPOSITORY
from shoal.model.errors import FailedPrecondition, ImageNotFound, InvalidRequest
from shoal.model.ids import IMAGE
from shoal.model.images import ImageKind, ImageRecord, ImageState
from shoal.model.spec import SandboxSpec

_DIGEST = "sha256:"


@dataclass(slots=True)
class ImageUse:
    """`can_be_stored`: whether images of one content will be in the object storage soon; `of_pools`: the ids of the
    images that declared pools need, one for each pool. `clock`: unix seconds."""

    images: Images
    registry: Registry
    nodes: Nodes
    clock: Callable[[], float] = time.time
    can_be_stored: Callable[[Sequence[ImageRecord]], bool] = lambda records: False
    of_pools: Callable[[], Iterable[str]] = tuple
    used: set[str] = field(default_factory=set)
    """Those that were used since it was last written when."""

    def held(self, spec: SandboxSpec) -> HeldImage | None:
        """The image of the cluster that a spec names, which counts as used now; None for an engine's reference.

        `ImageNotFound` where its environment has none; `FailedPrecondition` where no machine of the cluster has it."""
        record = self._record(spec)
        if record is None:
            return None
        nodes = self.nodes_with(record.digest)
        if nodes is not None and not nodes:
            raise FailedPrecondition(
                f"image: {record.id} is on machine {', '.join(record.machines)}, which is not part of the cluster now; "
                "create it once that is back, or from another image",
                state="away",
                field="image",
            )
        if record.kind is ImageKind.CHECKPOINT and spec.runtime != "runsc":
            raise InvalidRequest(
                f'runtime: {record.id} has the memory of a sandbox in gVisor; restore it with runtime="runsc"',
                field="runtime",
            )
        self.note_used(record)
        return HeldImage(record.id, record.digest)

    def named(self, spec: SandboxSpec) -> HeldImage | None:
        """The same, whether used or not, wherever it is."""
        record = self._record(spec)
        return None if record is None else HeldImage(record.id, record.digest)

    def with_command(self, spec: SandboxSpec) -> SandboxSpec:
        """The spec with the own command that its image was built with, where it has none itself."""
        if spec.command or spec.image.startswith(_DIGEST):
            return spec
        found = self.images.find(spec.image, spec.environment)
        if found is None or found.environment != spec.environment or found.kind is not ImageKind.BUILD:
            return spec
        command = (*found.config.get("entrypoint", ()), *found.config.get("command", ()))
        return replace(spec, command=command) if command else spec

    def note_used(self, record: ImageRecord) -> None:
        """It was used now."""
        self.images.put(replace(record, used_at=self.clock()))
        self.used.add(record.id)

    def has_memory(self, image: str) -> bool:
        """Whether an image, by its digest, is of a sandbox's memory, too."""
        return any(record.kind is ImageKind.CHECKPOINT for record in self.images.of_digest(image))

    def nodes_with(self, image: str) -> tuple[str, ...] | None:
        """The nodes that have an image of the cluster's, or can fetch it; None: any node may run it."""
        if not image.startswith(_DIGEST) or not (records := self.images.of_digest(image)):
            return None
        having = set(self.nodes_near(image))
        if any(record.stored for record in records) or self.can_be_stored(records):
            nodes = [node.id for node in self.nodes.known_nodes()]
            fetching = {node_id for node_id in nodes if self.nodes.fetches(node_id)}
            if len(fetching) == len(nodes):  # and so could a machine that is launched
                return None
            having |= fetching
        return tuple(sorted(having))

    def nodes_near(self, image: str) -> tuple[str, ...]:
        """The nodes on which an image of the cluster's was made."""
        records = self.images.of_digest(image) if image.startswith(_DIGEST) else ()
        machines = {machine for record in records for machine in record.machines}
        found = (self.nodes.of_machine(machine) for machine in machines)
        return tuple(sorted(node_id for node_id in found if node_id is not None))

    def counts(self) -> Counter[str]:
        """How many sandboxes and pools need each image."""
        held = (
            image.id
            for record in self.registry.live()
            for image in (record.image, record.disk, *record.mounted.values())
            if image is not None
        )
        return Counter([*held, *self.of_pools()])

    def _record(self, spec: SandboxSpec) -> ImageRecord | None:
        image, environment = spec.image, spec.environment
        found = self.images.find(image, environment)
        if found is not None and found.environment == environment:
            return found
        if image.startswith(_DIGEST) and (same := self.images.of_digest(image)):
            own = (each for each in same if each.environment == environment and each.state is ImageState.READY)
            found = next(own, None)
            if found is not None:
                return found
        elif not IMAGE.fullmatch(image) and not image.startswith(IMAGE_REPOSITORY):
            return None
        raise ImageNotFound(
            f"image: environment {environment!r} has no image {image:.80}; `shoal image ls` lists those that it has",
            field="image",
        )
