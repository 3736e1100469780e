"""Frozen dataclasses that travel by the hundred, in listings and with each create."""

from __future__ import annotations

from dataclasses import fields
from operator import attrgetter
from typing import Any, TypeVar

T = TypeVar("T")


def by_fields(cls: type[T]) -> type[T]:
    """Has objects of a dataclass pickled as a call with their fields' values: it takes half of the time that a frozen
    one with slots takes by itself. Put it above `@dataclass`."""
    values = attrgetter(*(one.name for one in fields(cls)))  # type: ignore[arg-type]

    def reduce(self: T) -> tuple[type[T], tuple[Any, ...]]:
        return cls, values(self)

    setattr(cls, "__reduce__", reduce)  # noqa: B010  # mypy takes no assignment to a method
    return cls
