"""Shoal, as a program would call it: blocking, and async for figures of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from shoal import Client, Pool, Sandbox
from tests.bench.execs import CALLERS, LATENCY_WINDOW, RATE_WINDOW, ROUNDS
from tests.bench.stats import Samples, samples
from tests.bench.subject import CPU_LIMIT, MEMORY_LIMIT, PIDS_LIMIT, WORKLOAD, Box, Subject

TAGS = {"job": "bench"}
REQUEST = (0.125, 128)  # cores and MiB that a sandbox is sure of: the defaults


def wanted(image: str, memory: int) -> dict[str, Any]:
    """What a create asks for, by the names that Python and JSON share."""
    return {
        "image": image,
        "cpu": (REQUEST[0], CPU_LIMIT),
        "memory": (REQUEST[1], memory),
        "pids": PIDS_LIMIT,
        "tags": TAGS,
    }


class Shoal(Subject):
    name = "shoal"

    def __init__(self, client: Client, image: str) -> None:
        self.client = client
        self._image = image

    def create(self, memory: int = MEMORY_LIMIT, image: str | None = None) -> ShoalBox:
        """`image`: in place of the usual one."""
        asked = self.wanted(memory)
        return ShoalBox(Sandbox.create(**{**asked, "image": image or asked["image"]}, client=self.client))

    def image_of(self, box: Box) -> str:
        """The id of an image of a box's files."""
        assert isinstance(box, ShoalBox)
        return str(box.sandbox.snapshot_filesystem().id)

    def wanted(self, memory: int) -> dict[str, Any]:
        """The options of a sandbox with that much memory (MiB) at most."""
        return wanted(self._image, memory)

    def wait_warm(self, count: int = 1, at_most: float = 20.0) -> None:
        """Returns once a node has that many warm containers; raises `TimeoutError` where none comes."""
        deadline = time.monotonic() + at_most
        while max(node.warm for node in self.client.nodes()) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no node had {count} warm containers within {at_most:g} s")
            time.sleep(0.05)

    @contextmanager
    def pool(self, ready: int, **options: Any) -> Iterator[Pool]:
        """A pool of what `create` creates, but for `options`; it is gone afterwards."""
        asked = {**wanted(self._image, MEMORY_LIMIT), **options}
        with Pool.create("bench", min_ready=ready, client=self.client, **asked) as pool:
            yield pool

    def close(self) -> None:
        for sandbox in Sandbox.list(tags=TAGS):
            sandbox.terminate()
        self.client.close()


class ShoalBox(Box):
    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def execute(self) -> None:
        self.sandbox.run(WORKLOAD, check=True)

    def write(self, path: str, data: bytes) -> None:
        self.sandbox.files.write_bytes(path, data)

    def read(self, path: str) -> bytes:
        return self.sandbox.files.read_bytes(path)

    def snapshot(self) -> Callable[[], object]:
        image = str(self.sandbox.snapshot_filesystem().id)
        client = self.sandbox._client
        return lambda: client.delete_image(image, when_unused=True)

    def close(self) -> None:
        self.sandbox.terminate()


def latency_aio(subject: Shoal) -> Samples:
    """As `execs.latency`, awaited in one event loop."""

    async def measure(sandboxes: Sequence[Sandbox]) -> Samples:
        times = []
        end = time.perf_counter() + ROUNDS * LATENCY_WINDOW
        while time.perf_counter() < end:
            start = time.perf_counter()
            await sandboxes[0].run.aio(WORKLOAD, check=True)
            times.append(time.perf_counter() - start)
        return samples("s", times)

    return _in_one_loop(subject, 1, measure)


def rate_aio(subject: Shoal, boxes_each: int) -> Samples:
    """As `execs.rate`, with tasks of one event loop in the place of threads."""

    async def caller(sandbox: Sandbox, deadline: float) -> int:
        count = 0
        while time.perf_counter() < deadline:
            await sandbox.run.aio(WORKLOAD, check=True)
            count += 1
        return count

    async def measure(sandboxes: Sequence[Sandbox]) -> Samples:
        rates = []
        for _ in range(ROUNDS - 1):
            start = time.perf_counter()
            callers = (caller(sandboxes[i % len(sandboxes)], start + RATE_WINDOW) for i in range(CALLERS))
            counts = await asyncio.gather(*callers)
            rates.append(sum(counts) / (time.perf_counter() - start))
        return samples("/s", rates)

    return _in_one_loop(subject, boxes_each, measure)


def _in_one_loop(subject: Shoal, count: int, measure: Callable[[Sequence[Sandbox]], Awaitable[Samples]]) -> Samples:
    async def run(sandboxes: Sequence[Sandbox]) -> Samples:
        for sandbox in sandboxes:  # opens this loop's connections
            await sandbox.run.aio(WORKLOAD, check=True)
        return await measure(sandboxes)

    with subject.boxes(count) as boxes:
        return asyncio.run(run([box.sandbox for box in boxes if isinstance(box, ShoalBox)]))
