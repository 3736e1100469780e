"""What the client's objects do in `with` blocks and `for` loops, in the blocking form and the awaited one."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from shoal.client.dual_method import dual_method

T = TypeVar("T")


class Context:
    """A context manager in both forms; it calls `_leave` at the end of its block."""

    _leave: dual_method[Any, [], None]  # of the subclass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._leave.aio()


class Series(Context, Generic[T]):
    """Also an iterator in both forms: it yields what `next` returns, until that is None."""

    next: dual_method[Any, ..., T | None]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        found = self.next()
        if found is None:
            raise StopIteration
        return found

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        found = await self.next.aio()
        if found is None:
            raise StopAsyncIteration
        return found
