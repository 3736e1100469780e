"""Volumes beside what they stand for: the same mount outside the sandbox, the sandbox's own disk, a create without."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal import Sandbox, Volume
from tests.bench.shoalpy import Shoal
from tests.bench.stats import Samples, samples
from tests.bench.subject import MEMORY_LIMIT, WORKLOAD

MIB = 128
FILES = 1000
ROUNDS = 4
CREATES = 6

_DATA = "/data"
_DISK = "/root"
_WRITE = f"dd if=/dev/zero of=%s bs=1M count={MIB} conv=fsync"
_READ = "dd of=%s oflag=nocache conv=notrunc,fdatasync count=0 2>/dev/null; dd if=%s of=/dev/null bs=1M"
"""The first has the kernel forget the file: else it would be read from memory."""

_SMALL = f"mkdir $0 && cd $0 && head -c {FILES * 4096} /dev/urandom | split -a 4 -b 4096"
_REPOSITORY = (
    "git init -q /root/origin && cd /root/origin && head -c 1400000 /dev/urandom | base64 | split -a 4 -b 2700"
    " && git add . && git -c user.name=a -c user.email=a@b commit -qm all"
)
_CLONE = "git clone -q --no-hardlinks /root/origin $0"
_VENV = "python3 -m venv $0"


def figures(shoal: Shoal, quiet: Callable[[], None]) -> dict[str, tuple[str, Samples]]:
    """What each is, and its samples, by key."""
    with _volume(shoal) as volume, _sandbox(shoal, volume) as sandbox:
        writes, reads = _streams(volume, sandbox, quiet)
        found = {
            "volume_write": ("sequential write to a volume ÷ the same mount outside the sandbox", writes),
            "volume_read": ("sequential read, the same", reads),
        }
        sandbox.run(_REPOSITORY, check=True)
        for name, what, script in (
            ("files", f"{FILES} files of 4 KiB, written", _SMALL),
            ("clone", "git clone of a repository of 700 files", _CLONE),
            ("venv", "python3 -m venv, with its install of pip", _VENV),
        ):
            for place, where in (("volume", _DATA), ("disk", _DISK)):
                quiet()
                start = time.perf_counter()
                sandbox.run("sh", "-c", script, f"{where}/{name}", check=True)
                if place == "volume":
                    volume.commit()
                found[f"{place}_{name}_s"] = f"{what}, {place}", samples("s", [time.perf_counter() - start])
        found["volume_seen_s"] = "a line written, committed and read from outside", _seen(volume, sandbox)
    added, first = _creates(shoal, quiet)
    found["volume_create_ms"] = "what a volume that is mounted adds to a create", added
    found["volume_first_ms"] = "the same, the first on its node", first
    return found


def _streams(volume: Volume, sandbox: Sandbox, quiet: Callable[[], None]) -> tuple[Samples, Samples]:
    """How many times as fast the sandbox writes and reads as a process of the node."""
    point = _point(volume)
    writes, reads = [], []

    def inside(script: str) -> float:
        return _seconds(sandbox.run(f"cd {_DATA}; {script}", check=True).stderr)

    def outside(script: str) -> float:
        return _seconds(subprocess.run(script, shell=True, cwd=point, capture_output=True, text=True).stderr)

    for turn in range(ROUNDS + 1):
        quiet()
        write = outside(_WRITE % "o") / inside(_WRITE % "i")
        read = outside(_READ % ("i", "i")) / inside(_READ % ("o", "o"))
        if turn > 0:  # the first is the warm-up
            writes.append(write)
            reads.append(read)
    return samples("×", writes), samples("×", reads)


def _seen(volume: Volume, sandbox: Sandbox) -> Samples:
    volume.files.list()  # what reads from outside is there
    taken = []
    for number in range(ROUNDS):
        start = time.perf_counter()
        sandbox.run(f"echo {number} > {_DATA}/seen", check=True)
        volume.commit()
        while volume.files.read_text("seen") != f"{number}\n":
            time.sleep(0.01)
        taken.append(time.perf_counter() - start)
    return samples("s", taken)


def _creates(shoal: Shoal, quiet: Callable[[], None]) -> tuple[Samples, Samples]:
    """Milliseconds that a volume adds from the call of create to the end of the first exec, each beside a create
    without: one that the node has mounted, and one that it has not."""

    def taken(volume: Volume | None) -> float:
        shoal.wait_warm(2)
        quiet()
        start = time.perf_counter()
        with _sandbox(shoal, volume) as sandbox:
            sandbox.run(WORKLOAD, check=True)
            return 1000 * (time.perf_counter() - start)

    for _ in range(3):  # makes the shape known as one that is in use
        with _sandbox(shoal, None) as sandbox:
            sandbox.run(WORKLOAD, check=True)
    added, first = [], []
    with _volume(shoal) as known:
        taken(known)
        for _ in range(CREATES):
            plain = taken(None)
            added.append(taken(known) - plain)
    for _ in range(ROUNDS):
        plain = taken(None)
        with _volume(shoal) as new:
            first.append(taken(new) - plain)
    return samples("ms", added), samples("ms", first)


@contextmanager
def _volume(shoal: Shoal) -> Iterator[Volume]:
    made = Volume.create(f"bench-{time.monotonic_ns()}", client=shoal.client)
    try:
        yield made
    finally:
        made.delete(now=True)


def _sandbox(shoal: Shoal, volume: Volume | None) -> Sandbox:
    volumes = {} if volume is None else {_DATA: volume}
    return Sandbox.create(**shoal.wanted(MEMORY_LIMIT), volumes=volumes, client=shoal.client)


def _point(volume: Volume) -> Path:
    """Where this machine has mounted what sandboxes see of a volume."""
    lines = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return next(Path(fields[4]) / "d" for fields in lines if f"JuiceFS:{volume.id}" in fields)


def _seconds(said: str) -> float:
    """The time that `dd` tells, of the last of several."""
    found = re.findall(r"copied, ([0-9.e+-]+) s", said)
    if not found:
        raise RuntimeError(f"dd failed: {said[-300:]}")
    return float(found[-1])
