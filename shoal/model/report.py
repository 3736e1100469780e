"""Progress reports of long work, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Report = Callable[[str], AbstractContextManager[None]]
"""`with report("Starting Ray"): …`: the text names the step; an exception in the block means that it failed."""


@contextmanager
def silent(_: str) -> Iterator[None]:
    """A report that shows nothing."""
    yield
