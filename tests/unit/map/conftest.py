"""What each test of `shoal.map` has, and leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from shoal.client.rollouts import run
from tests.unit.map.lab import Lab


@pytest.fixture
def lab() -> Lab:
    return Lab()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_PAUSES_S", (0.001, 0.001))


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = len(threads())
    yield
    deadline = time.monotonic() + 30
    while len(threads()) > before + 2:  # the client's own loop, and the fakes'
        assert time.monotonic() < deadline, threads()
        time.sleep(0.01)


def threads() -> list[threading.Thread]:
    """Without those that a loop keeps for its next blocking call."""
    return [thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")]
