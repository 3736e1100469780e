"""What is compared: the contract that Shoal and every peer fulfil, so that each measure has one body for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WORKLOAD = ("/bin/true",)

# The same limits for everybody, where the peer has them.
CPU_LIMIT = 1.0  # cores
MEMORY_LIMIT = 1024  # MiB
PIDS_LIMIT = 512


class Box(ABC):
    """One running sandbox. Its methods may be called by many threads at once."""

    @abstractmethod
    def execute(self) -> None:
        """Runs `WORKLOAD` to its end; raises unless it exits with 0."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None: ...

    @abstractmethod
    def read(self, path: str) -> bytes: ...

    def snapshot(self) -> Callable[[], object]:
        """Takes an image of its files; returns what removes that again, once the box is closed."""
        raise NotImplementedError

    @abstractmethod
    def close(self) -> None:
        """Takes it away and returns once it is gone."""


class Subject(ABC):
    """Something that makes boxes."""

    name: str
    exact = True
    """Whether a file comes back byte for byte as it was written."""

    @abstractmethod
    def create(self, memory: int = MEMORY_LIMIT) -> Box:
        """A box with that much memory (MiB) at most, ready for its first `execute`."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of what it holds; boxes that are still open go too."""

    @contextmanager
    def boxes(self, count: int) -> Iterator[list[Box]]:
        """That many boxes, each used once, and taken away afterwards."""
        made: list[Box] = []
        try:
            for _ in range(count):
                made.append(self.create())
                made[-1].execute()
            yield made
        finally:
            for box in made:
                box.close()
