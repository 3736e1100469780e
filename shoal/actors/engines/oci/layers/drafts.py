"""Directories that are being made or removed. What a crash leaves of them is found by its place and removed."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shoal.actors.engines.empty_tree import empty_tree
from shoal.actors.engines.oci.layers.files import read_json, write_json
from shoal.actors.engines.oci.layers.locks import lock_directory, locked

_WANTED: Final = "wanted.json"


@dataclass(frozen=True, slots=True)
class Draft:
    """A directory that is being made. `descriptor`: its lock, which a child process may inherit to keep it."""

    path: Path
    descriptor: int
    _wanted: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def want(self, layers: Iterable[str]) -> None:
        """Keeps these layers, too, from being evicted while the draft is there."""
        with self._lock:
            self._wanted.update(layers)
            write_json(self.path / _WANTED, {"layers": sorted(self._wanted)})


class Drafts:
    """The drafts of a store: `tmp/`, each locked by its maker for as long as it lives."""

    def __init__(self, directory: Path, lock: Path) -> None:
        self._directory = directory
        self._lock = lock

    @contextmanager
    def new(self) -> Iterator[Draft]:
        """A new draft. What is still in it at the end is removed."""
        path = self._directory / secrets.token_hex(8)
        with locked(self._lock, shared=True):  # no `remove_left` between the making and the lock
            path.mkdir(0o700)
            descriptor = lock_directory(path)
        assert descriptor is not None  # a new name: nobody else has it
        try:
            yield Draft(path, descriptor)
        finally:
            try:
                remove_tree(path)
            finally:
                os.close(descriptor)

    def wanted(self) -> set[str]:
        """The layers that drafts of living processes want. Call it under the store's lock."""
        found: set[str] = set()
        for path in self._directory.iterdir():
            descriptor = lock_directory(path)
            if descriptor is not None:  # its maker is dead
                os.close(descriptor)
                continue
            found.update((read_json(path / _WANTED) or {}).get("layers", ()))
        return found

    def remove_left(self) -> None:
        """Removes the drafts of dead processes. Call it under the store's lock."""
        for path in self._directory.iterdir():
            descriptor = lock_directory(path)
            if descriptor is None:
                continue
            try:
                remove_tree(path)
            finally:
                os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Removes a directory with all in it, of any depth. Idempotent."""
    try:
        empty_tree(path)
        path.rmdir()
    except FileNotFoundError:
        pass
