"""Which disks are made ahead. That they go with their process is tested in `tests/contract/engines/test_oci.py`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from shoal.actors.engines.disks import ready as ready_module
from shoal.actors.engines.disks.ready import READY, ReadyDisks

WITHIN_S = 20.0


class Maker:
    """Makes disks that are none. `sizes`: of those made so far; `open`: those that are held."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.made: list[int] = []
        self.fails = False

    def __call__(self, size: int) -> int:
        if self.fails:
            raise OSError("no loop device is free")
        self.sizes.append(size)
        self.made.append(os.open("/dev/null", os.O_RDONLY))
        return self.made[-1]

    @property
    def held(self) -> set[int]:
        return {disk for disk in self.made if _is_open(disk)}


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> Maker:
    monkeypatch.setattr(ready_module, "_SOON_S", 0.0)
    return Maker()


@pytest.fixture
def disks(maker: Maker) -> Iterator[ReadyDisks]:
    made = ReadyDisks(maker)
    yield made
    made.close()
    assert not maker.held


def test_as_many_are_ready_as_may_be_and_not_more(disks: ReadyDisks, maker: Maker) -> None:
    assert disks.take(1) is None
    _until(lambda: len(maker.held) == READY)
    taken = [disks.take(1) for _ in range(READY)]
    assert sorted(disk for disk in taken if disk is not None) == sorted(maker.made[:READY])
    _until(lambda: len(maker.sizes) >= 2 * READY)
    for disk in taken:
        assert disk is not None
        os.close(disk)


def test_the_size_that_was_asked_for_least_lately_goes(disks: ReadyDisks, maker: Maker) -> None:
    for size in (1, 2):
        assert disks.take(size) is None
        _until(lambda size=size: maker.sizes.count(size) == READY)
    assert disks.take(3) is None
    _until(lambda: maker.sizes.count(3) == READY)
    assert len(maker.held) == 2 * READY
    assert disks.take(1) is None


def test_what_cannot_be_made_ahead_is_tried_again_with_the_next(disks: ReadyDisks, maker: Maker) -> None:
    maker.fails = True
    assert disks.take(1) is None
    _until(lambda: not disks._filling)
    maker.fails = False
    assert disks.take(1) is None
    _until(lambda: len(maker.held) == READY)


def test_after_its_end_nothing_is_made(maker: Maker) -> None:
    disks = ReadyDisks(maker)
    threads = [threading.Thread(target=disks.take, args=(1,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    disks.close()
    for thread in threads:
        thread.join()
    disks.close()
    assert disks.take(1) is None


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
