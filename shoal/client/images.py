"""A client's calls about images that there are: list, look at, name, delete and collect them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shoal.client.dual_method import dual_method
from shoal.client.html import Listed
from shoal.model import verbs
from shoal.model.builds import BuildInfo
from shoal.model.errors import InvalidRequest
from shoal.model.ids import IMAGE
from shoal.model.images import ImageKind, ImageListing, ImageRecord, image_name
from shoal.model.validate import check_name, check_number, check_text

if TYPE_CHECKING:
    from shoal.transport.contract import Transport

_COLUMNS = "id name kind state size in_use created_at"


class ImageCalls:
    """The images' part of a `Client`. `image`: an id (`im-…`), or a name in an environment (None: the token's)."""

    transport: Transport

    @dual_method
    async def images(
        self,
        *,
        kind: ImageKind | str | None = None,
        name: str | None = None,
        environment: str | None = None,
        limit: int = 1000,
    ) -> Sequence[ImageRecord]:
        """Images, newest first, at most `limit`: of a `kind` (`snapshot`, `build`, `loaded`, `checkpoint`), of a
        `name` with its tag, or with any."""
        check_number("limit", limit, 0, math.inf, "images", whole=True)
        if kind is not None and kind not in list(ImageKind):
            raise InvalidRequest(f"kind: {kind!r:.80} is none; there are {', '.join(ImageKind)}", field="kind")
        if name is not None:
            image_name(name)
        wanted = None if kind is None else ImageKind(kind)
        environment = await self._environment(environment)
        found: list[ImageRecord] = []
        listing = ImageListing(environment, wanted, name, limit)
        while True:
            page = await self.transport.ask(verbs.list_images, listing)
            found += page.images
            if page.reached is None or len(found) >= limit:
                return Listed(found, _COLUMNS)
            listing = ImageListing(environment, wanted, name, limit - len(found), page.reached)

    @dual_method
    async def builds(self, *, environment: str | None = None) -> Sequence[BuildInfo]:
        """The builds of images that run and the last ones that ended, newest first; None: all that you may see."""
        if environment is not None:
            check_name("environment", environment)
        columns = "id environment state step steps image started_at ended_at"
        return Listed(await self.transport.ask(verbs.builds, environment), columns)

    @dual_method
    async def image(self, image: str, *, environment: str | None = None) -> ImageRecord:
        """One; `ImageNotFound`."""
        return await self.transport.ask(verbs.get_image, image, await self._owner(image, environment))

    @dual_method
    async def delete_image(
        self, image: str, *, environment: str | None = None, when_unused: bool = False
    ) -> ImageRecord:
        """Deletes one. Raises `FailedPrecondition` while sandboxes or pools need it (`in_use`: how many); with
        `when_unused` nobody can use it from now on, and it goes once they do not need it any more."""
        owner = await self._owner(image, environment)
        return await self.transport.ask(verbs.delete_image, image, owner, when_unused)

    @dual_method
    async def name_image(self, image: str, name: str | None, *, environment: str | None = None) -> ImageRecord:
        """Gives one another name, `name:tag`, which moves to it from another image; None: it has no name any more."""
        wanted = None if name is None else image_name(name)
        return await self.transport.ask(verbs.name_image, image, await self._owner(image, environment), wanted)

    @dual_method
    async def collect_images(
        self, *, unused_for: float = 0.0, dry_run: bool = False, environment: str | None = None
    ) -> Sequence[ImageRecord]:
        """Deletes the images without a name that nothing needs, and from which no sandbox was created for `unused_for`
        seconds; returns them. `dry_run`: only that."""
        check_number("unused_for", unused_for, -1, math.inf, "seconds")
        where = await self._environment(environment)
        return Listed(await self.transport.ask(verbs.collect_images, where, float(unused_for), dry_run), _COLUMNS)

    async def _owner(self, image: str, environment: str | None) -> str | None:
        """The environment in which a name is looked up; an id needs none."""
        check_text("image", image, "an image's id or name")
        return None if environment is None and IMAGE.fullmatch(image) else await self._environment(environment)

    async def _environment(self, environment: str | None) -> str:
        if environment is None:
            return await self.transport.default_environment()
        check_name("environment", environment)
        return environment
