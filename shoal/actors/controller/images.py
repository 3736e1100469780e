"""The images of the cluster in memory, by id, name, digest and cache key. Pure: no Ray, no disk, no clock."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from shoal.model.ids import IMAGE
from shoal.model.images import LATEST, ImageListing, ImagePage, ImageRecord, ImageState, may_be_name
from shoal.model.info import PageCursor

Key = tuple[str, str]
"""An environment, and a name or key in it."""


class Images:
    """All images, those too that are being made or are about to go."""

    def __init__(self, records: Iterable[ImageRecord] = ()) -> None:
        self._records: dict[str, ImageRecord] = {}
        self._by_age: list[PageCursor] = []
        self._counts: Counter[str] = Counter()
        self._names: dict[Key, str] = {}
        self._cache_keys: dict[Key, str] = {}
        self._keys: dict[Key, str] = {}
        self._digests: dict[str, dict[str, None]] = {}
        for record in sorted(records, key=_position):
            self.put(record)

    def put(self, record: ImageRecord) -> None:
        """Adds one, or replaces the one of its id. When it was used last is what is known to be latest."""
        before = self._records.get(record.id)
        if before is not None:
            self._unlink(before)
            if before.used_at is not None and before.used_at > (record.used_at or 0.0):
                record = replace(record, used_at=before.used_at)
        else:
            insort(self._by_age, _position(record))
            self._counts[record.environment] += 1
        self._records[record.id] = record
        for index, value in self._links(record):
            index[record.environment, value] = record.id
        if record.digest:
            self._digests.setdefault(record.digest, {})[record.id] = None

    def remove(self, image_id: str) -> None:
        """Idempotent."""
        record = self._records.pop(image_id, None)
        if record is not None:
            self._unlink(record)
            self._counts[record.environment] -= 1
            del self._by_age[bisect_left(self._by_age, _position(record))]

    def get(self, image_id: str) -> ImageRecord | None:
        return self._records.get(image_id)

    def all(self) -> list[ImageRecord]:
        return list(self._records.values())

    def count(self, environment: str) -> int:
        """How many an environment has, those too that are about to go."""
        return self._counts[environment]

    def find(self, image: str, environment: str | None) -> ImageRecord | None:
        """The one that is ready and has that id, or that name in the environment."""
        if IMAGE.fullmatch(image):
            return _ready(self._records.get(image))
        if environment is None or not may_be_name(image):
            return None
        name = image if ":" in image else f"{image}:{LATEST}"
        return _ready(self._records.get(self._names.get((environment, name), "")))

    def cached(self, environment: str, cache_key: str) -> ImageRecord | None:
        """The one that is ready and has that cache key."""
        return _ready(self._records.get(self._cache_keys.get((environment, cache_key), "")))

    def keyed(self, environment: str, key: str) -> ImageRecord | None:
        """The one that a call with that idempotency key asked for, unless it is about to go."""
        return self._records.get(self._keys.get((environment, key), ""))

    def of_digest(self, digest: str) -> list[ImageRecord]:
        """Those with that content, in any state."""
        return [self._records[image_id] for image_id in self._digests.get(digest, ())]

    def page(self, listing: ImageListing) -> ImagePage:
        """Those that are ready, newest first."""
        wanted = (record for record in self._newest(listing.before) if _matches(record, listing))
        found = list(islice(wanted, listing.limit + 1))
        more = len(found) > listing.limit
        images = found[: listing.limit]
        return ImagePage(images, _position(images[-1]) if more and images else None)

    def _newest(self, before: PageCursor | None) -> Iterator[ImageRecord]:
        end = len(self._by_age) if before is None else bisect_left(self._by_age, before)
        for index in range(end - 1, -1, -1):
            yield self._records[self._by_age[index][1]]

    def _links(self, record: ImageRecord) -> Iterator[tuple[dict[Key, str], str]]:
        if record.state is ImageState.GOING:
            return
        for index, value in (
            (self._names, record.name),
            (self._cache_keys, record.cache_key),
            (self._keys, record.key),
        ):
            if value is not None:
                yield index, value

    def _unlink(self, record: ImageRecord) -> None:
        for index, value in self._links(record):
            if index.get((record.environment, value)) == record.id:
                del index[record.environment, value]
        same = self._digests.get(record.digest, {})
        same.pop(record.id, None)
        if record.digest and not same:
            self._digests.pop(record.digest, None)


def unfinished(record: ImageRecord) -> ImageRecord:
    """One as an earlier controller left it: what it was making goes."""
    return replace(record, state=ImageState.GOING) if record.state is ImageState.MAKING else record


def _ready(record: ImageRecord | None) -> ImageRecord | None:
    return record if record is not None and record.state is ImageState.READY else None


def _position(record: ImageRecord) -> PageCursor:
    return record.created_at, record.id


def _matches(record: ImageRecord, listing: ImageListing) -> bool:
    return (
        record.state is ImageState.READY
        and record.environment == listing.environment
        and listing.kind in (None, record.kind)
        and (listing.name is None or _is_named(record.name, listing.name))
    )


def _is_named(name: str | None, wanted: str) -> bool:
    """`wanted` without a tag: with any."""
    return name is not None and (name == wanted or (":" not in wanted and name.partition(":")[0] == wanted))
