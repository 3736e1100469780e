"""How long work tells of its progress: one step after another, each entered and left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Report = Callable[[str], AbstractContextManager[None]]
"""`with report("Starting Ray"): …` – the text says what is being done; leaving it by an exception means that it failed."""


@contextmanager
def silent(_: str) -> Iterator[None]:
    """The report that tells nobody."""
    yield
