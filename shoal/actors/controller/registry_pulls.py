"""Images of registries that only let in who has credentials. Such an image belongs to the environment that had them: it
is on record as one of its images, under no name that another environment could use, and the nodes know it by that
record alone."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from shoal.actors.controller.accounts import Accounts
from shoal.actors.controller.image_changes import ImageChanges
from shoal.actors.controller.images import Images
from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.record_writer import audited
from shoal.actors.controller.secrets import Secrets
from shoal.actors.messages import NodeImage
from shoal.model import tasks, verbs
from shoal.model.access import Caller
from shoal.model.errors import InvalidRequest, QuotaExceeded, ShoalError, Unavailable
from shoal.model.ids import new_image_id
from shoal.model.images import ImageKind, ImageRecord, ImageState
from shoal.model.secrets import REGISTRY_KEYS, SecretUse, check_use
from shoal.model.settings import Limits
from shoal.model.validate import check_text
from shoal.model.visibility import check_sees_environment


@dataclass(slots=True)
class RegistryPulls:
    """`used`: is told of an image that was found; `call`: how actors are called; `clock`: unix seconds."""

    images: Images
    changes: ImageChanges
    used: Callable[[ImageRecord], None]
    accounts: Accounts
    secrets: Secrets
    nodes: Nodes
    limits: Limits
    call: Callable[..., Awaitable[Any]]
    clock: Callable[[], float] = time.time
    _pulling: dict[tuple[str, str], asyncio.Task[ImageRecord]] = field(default_factory=dict)

    async def pull(self, reference: str, environment: str, secret: SecretUse, caller: Caller) -> ImageRecord:
        """The environment's image of a reference, pulled where it has none."""
        check_sees_environment(caller, environment)
        self.accounts.quota(environment)  # or there is no such environment
        check_text("reference", reference, "an image's reference, such as 'ghcr.io/org/name:tag'")
        if len(reference) > 512:
            raise InvalidRequest("reference: it is longer than 512 characters", field="reference")
        check_use("secret", secret)
        await self.secrets.load()
        values = self.secrets.values_of(secret, environment)
        if missing := [key for key in REGISTRY_KEYS if key not in values]:
            raise InvalidRequest(f"secret: it has no {missing[0]}; give {' and '.join(REGISTRY_KEYS)}", field="secret")
        key = hashlib.sha256(f"registry\n{reference}".encode()).hexdigest()
        known = self.images.cached(environment, key)
        if known is not None and known.state is ImageState.READY:
            self.used(known)
            return known
        pulling = self._pulling.get((environment, key))
        if pulling is None:
            work = self._pull(reference, environment, key, [values[each] for each in REGISTRY_KEYS], caller)
            pulling = self._pulling[environment, key] = tasks.shared(work, "pull image")
            pulling.add_done_callback(lambda _: self._pulling.pop((environment, key), None))
        return await asyncio.shield(pulling)

    async def _pull(
        self, reference: str, environment: str, key: str, credentials: list[str], caller: Caller
    ) -> ImageRecord:
        if self.images.count(environment) >= self.limits.images:
            raise QuotaExceeded(f"environment {environment!r} has {self.limits.images} images, the most; delete some")
        nodes = sorted(self.nodes.capacities())
        if not nodes:
            raise Unavailable("no node answers now; try again later")
        now = self.clock()
        image = ImageRecord(
            new_image_id(),
            environment,
            ImageKind.LOADED,
            now,
            ImageState.MAKING,
            parent=reference,
            machines=(self.nodes.machine_of(nodes[0]) or "",),
        )
        self.images.put(image)
        try:
            await self.changes.add(image)
            made: NodeImage = await self.call(
                self.nodes.handle(nodes[0]), "pull_image", reference, image.id, *credentials, timeout_s=verbs.BASE_S
            )
            entry = audited(verbs.pull_image, caller, target=image.id, environment=environment)
            # Its entrypoint and command are not its sandboxes', as those of any image that was not built here.
            config = {**made.config, "entrypoint": [], "command": []}
            changed: dict[str, Any] = {"digest": made.digest, "size": made.size, "config": config, "cache_key": key}
            return await self.changes.change(image.id, [entry], state=ImageState.READY, **changed)
        except Exception:
            try:
                await self.changes.let_go([image.id], self.clock())
            except ShoalError:
                self.changes.doom(image.id)
            raise
