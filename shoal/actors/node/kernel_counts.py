"""Numbers of which the kernel has one for the whole machine, or one for each user: root in all sandboxes is one user.

Whatever they count is charged to the memory of the sandbox that makes it. So a node raises them until that, or the
limit on open files, is what ends first: then no sandbox can use up what the others and the machine need. User
namespaces do not part them: the kernel charges a namespace's counts to its creator too, which for every container is
root (seen with Docker 20.10 and a range of ids by `userns-remap`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SETTINGS: Final = Path("/proc/sys")
NO_LIMIT: Final = 0


@dataclass(frozen=True, slots=True)
class KernelCount:
    """A setting of the kernel by its `sysctl` name, and the least value that serves. `NO_LIMIT`: only none does."""

    name: str
    least: int

    @property
    def file(self) -> Path:
        return _SETTINGS / self.name.replace(".", "/")

    def serves(self, value: int) -> bool:
        return value == NO_LIMIT if self.least == NO_LIMIT else value >= self.least


COUNTS: Final = (
    KernelCount("fs.inotify.max_user_instances", 1 << 20),
    KernelCount("fs.inotify.max_user_watches", 1 << 26),
    KernelCount("fs.epoll.max_user_watches", 1 << 30),
    KernelCount("fs.aio-max-nr", 1 << 30),
    KernelCount("fs.pipe-user-pages-soft", NO_LIMIT),
    KernelCount("fs.pipe-user-pages-hard", NO_LIMIT),
    # A container's own are bounded, see `engines/shared_counts.py`.
    KernelCount("kernel.pty.max", 1 << 14),
)


def too_small(counts: Iterable[KernelCount] = COUNTS) -> list[KernelCount]:
    """The settings that do not serve. What this kernel does not have does not count."""
    return [count for count in counts if (value := _read(count)) is not None and not count.serves(value)]


def raise_counts(counts: Iterable[KernelCount] = COUNTS) -> list[KernelCount]:
    """Raises the settings that do not serve, until the next boot; returns those that could not be. Blocks."""
    for count in too_small(counts):
        try:
            count.file.write_text(f"{count.least}\n")
        except OSError:
            continue
    return too_small(counts)


def remedy(counts: Iterable[KernelCount]) -> str:
    """The command that raises them."""
    return "sysctl -w " + " ".join(f"{count.name}={count.least}" for count in counts)


def _read(count: KernelCount) -> int | None:
    try:
        return int(count.file.read_text())
    except (OSError, ValueError):
        return None
