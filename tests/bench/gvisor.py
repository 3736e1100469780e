"""gVisor beside runc on the same cluster, and how fast a sandbox goes on from memory: reported, without a target."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Any

from shoal import Checkpoint, Sandbox
from tests.bench import creates, execs
from tests.bench.shoalpy import REQUEST, TAGS, Shoal
from tests.bench.stats import Samples, samples
from tests.bench.subject import MEMORY_LIMIT, WORKLOAD

RESTORES = 5
AT_ONCE = 8

_HOLDING = "import time; held = bytearray(50 << 20); print('ready', flush=True); time.sleep(3600)"
_unlike = itertools.count(MEMORY_LIMIT + 2000)


class InGvisor(Shoal):
    name = "gvisor"

    def wanted(self, memory: int) -> dict[str, Any]:
        return {**super().wanted(memory), "runtime": "runsc"}


def there(shoal: Shoal) -> bool:
    return any("runsc" in node.runtimes for node in shoal.client.nodes())


def image_of(shoal: Shoal) -> str:
    return str(shoal.wanted(MEMORY_LIMIT)["image"])


def figures(shoal: Shoal, quiet: Callable[[], None]) -> dict[str, tuple[str, Samples]]:
    """What each is, and its samples in seconds, by key."""
    both = (shoal, InGvisor(shoal.client, image_of(shoal)))
    names = {"shoal": "runc", "gvisor": "gvisor"}
    found = {}
    for name, taken in creates.cold(both, quiet).items():
        found[f"{names[name]}_create_ms"] = f"create to first exec, cold, {names[name]}", taken
    for name, taken in execs.latency(both).items():
        found[f"{names[name]}_exec_ms"] = f"exec, one caller, {names[name]}", taken
    one, new, many = _restores(shoal, quiet)
    found["gvisor_restore_ms"] = "restore of a Python that holds 50 MiB, to the first exec", one
    found[f"gvisor_restore_{AT_ONCE}_new_ms"] = f"{AT_ONCE} of them at once, with new sandbox actors", new
    found[f"gvisor_restore_{AT_ONCE}_ms"] = f"{AT_ONCE} of them at once, with sandbox actors there", many
    return found


def _restores(shoal: Shoal, quiet: Callable[[], None]) -> tuple[Samples, Samples, Samples]:
    """One at a time; many for the first time; many again, as their actors wait for the next sandboxes for a while."""
    with Sandbox.create(image=image_of(shoal), runtime="runsc", tags=TAGS, client=shoal.client) as sandbox:
        process = sandbox.exec("python3", "-c", _HOLDING)
        assert next(iter(process.stdout)) == "ready\n"
        checkpoint = sandbox.snapshot(ttl=600)
    one = [asyncio.run(_restored(shoal, checkpoint, 1, quiet)) for _ in range(RESTORES + 1)][1:]
    new, *many = [asyncio.run(_restored(shoal, checkpoint, AT_ONCE, quiet)) for _ in range(4)]
    return samples("s", one), samples("s", [new]), samples("s", many)


async def _restored(shoal: Shoal, checkpoint: Checkpoint, count: int, quiet: Callable[[], None]) -> float:
    """Seconds until so many have each answered. None is ready before: each round asks for another memory limit."""
    memory = next(_unlike)

    async def restore() -> Sandbox:
        made = await Sandbox.restore.aio(checkpoint, memory=(REQUEST[1], memory), tags=TAGS, client=shoal.client)
        await made.run.aio(WORKLOAD, check=True)
        return made

    await asyncio.to_thread(quiet)
    start = time.perf_counter()
    made = await asyncio.gather(*(restore() for _ in range(count)))
    seconds = time.perf_counter() - start
    await asyncio.gather(*(each.terminate.aio() for each in made))
    return seconds
