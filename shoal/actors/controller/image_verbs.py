"""The verbs that are about images that there are: see `shoal.model.verbs` for what each does and raises."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from shoal.actors.controller.accounts import Accounts
from shoal.actors.controller.image_changes import ImageChanges
from shoal.actors.controller.image_use import ImageUse
from shoal.actors.controller.images import Images
from shoal.actors.controller.record_writer import audited
from shoal.actors.names import copied
from shoal.model import verbs
from shoal.model.access import Caller
from shoal.model.errors import ImageNotFound
from shoal.model.ids import IMAGE
from shoal.model.images import ImageListing, ImagePage, ImageRecord, ImageState, image_name
from shoal.model.validate import check_number
from shoal.model.visibility import check_sees_environment, sees

_MOST_IN_A_PAGE = 1000


@dataclass(slots=True)
class ImageVerbs:
    """`clock`: unix seconds."""

    images: Images
    use: ImageUse
    changes: ImageChanges
    accounts: Accounts
    clock: Callable[[], float] = time.time

    def page(self, listing: ImageListing, caller: Caller) -> ImagePage:
        """Images, newest first."""
        self.accounts.environment(listing.environment, caller)
        check_number("limit", listing.limit, 0, float("inf"), "images", whole=True)
        page = self.images.page(replace(listing, limit=min(listing.limit, _MOST_IN_A_PAGE)))
        counts = self.use.counts()
        return ImagePage([replace(each, in_use=counts[each.id]) for each in page.images], page.reached)

    def get(self, image: str, environment: str | None, caller: Caller) -> ImageRecord:
        """One, by id or name."""
        found = self._known(image, environment, caller)
        return replace(found, in_use=self.use.counts()[found.id])

    async def delete(self, image: str, environment: str | None, when_unused: bool, caller: Caller) -> ImageRecord:
        """Has one go from its machines."""
        found = self._known(image, environment, caller)
        entry = audited(verbs.delete_image, caller, target=found.id, environment=found.environment)
        await self.changes.let_go([found.id], self.clock(), [entry], when_unused=when_unused)
        return replace(found, in_use=self.use.counts()[found.id])

    async def name(self, image: str, environment: str | None, name: str | None, caller: Caller) -> ImageRecord:
        """Gives one a name, or takes it away."""
        wanted = None if name is None else image_name(name)
        found = self._known(image, environment, caller)
        entry = audited(verbs.name_image, caller, target=found.id, environment=found.environment)
        changed = await self.changes.change(found.id, [entry], name=wanted)
        return replace(changed, in_use=self.use.counts()[found.id])

    async def collect(self, environment: str, unused_for: float, dry_run: bool, caller: Caller) -> list[ImageRecord]:
        """Deletes those without a name that nothing needs."""
        self.accounts.environment(environment, caller)
        check_number("unused_for", unused_for, -1, float("inf"), "seconds")
        now = self.clock()
        idle = [each for each in self.unused(now - unused_for) if each.environment == environment]
        if dry_run or not idle:
            return idle
        entries = [audited(verbs.collect_images, caller, target=each.id, environment=environment) for each in idle]
        return await self.changes.let_go([each.id for each in idle], now, entries)

    def find(self, environment: str, cache_key: str) -> ImageRecord | None:
        """The image of a step of a recipe, which counts as used now."""
        found = self.images.cached(environment, cache_key)
        if found is not None:
            self.use.note_used(found)
        return found

    def unknown(self, image_ids: Sequence[str]) -> list[str]:
        """Those that no image has."""
        return [image_id for image_id in image_ids if not self._is_known(image_id)]

    def _is_known(self, image_id: str) -> bool:
        digest = copied(image_id)
        return self.images.get(image_id) is not None if digest is None else bool(self.images.of_digest(digest))

    def unused(self, since: float) -> list[ImageRecord]:
        """Those without a name that nothing needs, and that were not used since that time."""
        counts = self.use.counts()
        return [
            record
            for record in self.images.all()
            if record.state is ImageState.READY
            and record.name is None
            and (record.used_at or record.created_at) <= since
            and not counts[record.id]
        ]

    def _known(self, image: str, environment: str | None, caller: Caller) -> ImageRecord:
        if environment is not None:
            check_sees_environment(caller, environment)
        found = self.images.find(image, environment)
        if found is None or not sees(caller, found.environment):
            where = "" if environment is None or IMAGE.fullmatch(image) else f" in environment {environment!r}"
            raise ImageNotFound(
                f"image: there is no image {image:.80}{where}; `shoal image ls` lists those that there are",
                field="image",
            )
        return found
