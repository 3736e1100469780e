"""The items of a map, one at a time, however many there are."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sized
from typing import Any, Generic, TypeVar

from shoal.client.rollouts.threads import Worker
from shoal.model.errors import InvalidRequest

T = TypeVar("T")

_END: Any = object()


class Source(Generic[T]):
    """Items from a list, a generator or an async iterable.

    A generator may block, so it runs in a thread of its own, always the same one. Raises `InvalidRequest` if `items` is
    none of these.
    """

    def __init__(self, items: Iterable[T] | AsyncIterable[T]) -> None:
        self.total = len(items) if isinstance(items, Sized) else None
        self._async: AsyncIterator[T] | None = None
        self._plain: Iterator[T] | None = None
        self._worker = None if isinstance(items, list | tuple | range | dict | set | frozenset | str) else Worker()
        if isinstance(items, AsyncIterable):
            self._async = aiter(items)
        elif isinstance(items, Iterable):
            self._plain = iter(items)
        else:
            raise InvalidRequest(f"items: {items!r:.80} is not iterable; give a list or the like", field="items")

    async def next(self) -> tuple[T] | None:
        """The next item, in a tuple of its own; None at the end."""
        if self._async is not None:
            item = await anext(self._async, _END)
        elif self._worker is None:
            item = next(self._plain, _END)  # type: ignore[arg-type]
        else:
            item = await self._worker.call(next, self._plain, _END)
        return None if item is _END else (item,)

    def close(self) -> None:
        """Ends the thread. The iterable itself is left as it is; a generator that nobody else has is closed with it."""
        if self._worker is not None:
            self._worker.stop()
